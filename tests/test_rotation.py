"""The authority is replaced while the cluster runs: whoever keeps up with the steps meets all others at all times."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from node import rotation
from node.certificates import ca_pin, describe
from node.identity import Identity, IdentityError, replace_certificate
from node.tls import IdentityContexts, pinned_join_context
from tests.test_identity_tls import ALPN, NOW, Node, joined, meet


class Fleet:
    """An issuer and two members; `renew` is what a renewal does, without the network."""

    def __init__(self, folder: Path) -> None:
        from node.identity import init_identity

        self.nodes = {"a": Node(init_identity(folder / "a", "fleet", "a", now=NOW))}
        for name in ("b", "c"):
            self.nodes[name] = Node(joined(folder / name, self.nodes["a"].identity, name))
        self.now = NOW

    def contexts(self, name: str) -> IdentityContexts:
        return self.nodes[name].contexts

    def identity(self, name: str) -> Identity:
        return self.contexts(name).identity

    def step(self, name: str) -> None:
        self.now += 60
        rotation.STEPS[name](self.identity("a").folder.parent, now=self.now)
        self.contexts("a").reload()

    def renew(self, *names: str) -> None:
        self.now += 60
        for name in names:
            issuer, own = self.identity("a"), self.identity(name)
            renewed = issuer.issue(
                own.renewal_csr(), name, ephemeral=False, now=self.now, joined_at=own.facts.joined_at
            )
            replace_certificate(own, renewed + issuer.ca_pem, now=self.now)
            self.contexts(name).reload()

    def meets(self, server: str, client: str) -> bool:
        return meet(self.contexts(server).server(ALPN), self.contexts(client).client(ALPN)).server == b"tome"

    def all_meet(self) -> bool:
        pairs = [(one, other) for one in self.nodes for other in self.nodes if one != other]
        return all(self.meets(*pair) for pair in pairs)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def test_all_nodes_meet_at_every_moment_and_in_the_end_only_the_new_authority_counts(fleet: Fleet) -> None:
    old = fleet.identity("a").ca_pin
    for step in ("begin", "switch", "end"):
        fleet.step(step)
        assert fleet.all_meet(), f"after {step}"
        fleet.renew("b")
        assert fleet.all_meet(), f"after {step}, when one node has renewed"
        fleet.renew("c")
        assert fleet.all_meet(), f"after {step}, when all have renewed"
    for name in fleet.nodes:
        (authority,) = fleet.identity(name).authorities
        assert ca_pin(authority) == fleet.identity("a").ca_pin != old
    assert describe(fleet.identity("b").certificate_pem).joined_at == NOW


def test_whoever_missed_the_switch_is_refused_by_all_at_the_end(fleet: Fleet) -> None:
    fleet.step("begin")
    fleet.renew("b", "c")
    fleet.step("switch")
    fleet.renew("b")
    assert fleet.all_meet()
    fleet.step("end")
    fleet.renew("b")
    meeting = meet(fleet.contexts("b").server(ALPN), fleet.contexts("c").client(ALPN))
    assert meeting.server_says[0] == "foreign"
    assert "was retired; it must join anew" in meeting.server_says[1]


def test_whoever_missed_the_beginning_trusts_no_authority_of_the_answer(fleet: Fleet) -> None:
    own = fleet.identity("c")
    for step in ("begin", "switch", "end"):
        fleet.step(step)
        if step != "end":
            fleet.renew("b")
    issuer = fleet.identity("a")
    renewed = issuer.issue(own.renewal_csr(), "c", ephemeral=False, now=fleet.now)
    with pytest.raises(IdentityError, match="trusts none of our authorities"):
        replace_certificate(own, renewed + issuer.ca_pem, now=fleet.now)
    assert fleet.contexts("c").reload() == own


def test_an_authority_that_comes_without_one_we_trust_is_not_taken(fleet: Fleet, tmp_path: Path) -> None:
    own, stranger = fleet.identity("b"), Fleet(tmp_path / "other").identity("a")
    renewed = stranger.issue(own.renewal_csr(), "b", ephemeral=False, now=NOW + 60)
    with pytest.raises(IdentityError, match="trusts none"):
        replace_certificate(own, renewed + stranger.ca_pem, now=NOW + 60)
    with pytest.raises(IdentityError, match="did not sign"):
        replace_certificate(own, renewed, now=NOW + 60)


def test_the_steps_come_in_their_order_and_each_may_be_repeated(fleet: Fleet) -> None:
    directory = fleet.identity("a").folder.parent
    with pytest.raises(IdentityError, match="spore rotate begin"):
        rotation.switch(directory, now=NOW)
    fleet.step("begin")
    began = fleet.identity("a").ca_pem
    fleet.step("begin")
    assert fleet.identity("a").ca_pem == began
    with pytest.raises(IdentityError, match="spore rotate switch"):
        rotation.end(directory, now=NOW)
    fleet.step("switch")
    switched = fleet.identity("a").ca_pin
    fleet.step("switch")
    assert fleet.identity("a").ca_pin == switched
    fleet.step("end")
    fleet.step("end")
    assert rotation.state(fleet.identity("a"))["signing"] == switched
    assert not rotation.state(fleet.identity("a"))["next"]


def test_a_member_cannot_begin_it(fleet: Fleet) -> None:
    with pytest.raises(IdentityError, match="run this on an issuer"):
        rotation.begin(fleet.identity("b").folder.parent, now=NOW)


def test_who_joins_during_a_roll_over_gets_both_authorities(fleet: Fleet, tmp_path: Path) -> None:
    fleet.step("begin")
    fleet.renew("b", "c")
    fleet.nodes["d"] = Node(joined(tmp_path / "d", fleet.identity("a"), "d"))
    assert len(fleet.identity("d").authorities) == 2
    fleet.step("switch")
    fleet.nodes["e"] = Node(joined(tmp_path / "e", fleet.identity("a"), "e", now=fleet.now))
    assert fleet.all_meet()


def test_a_token_pins_the_authority_that_signs(fleet: Fleet) -> None:
    before = fleet.identity("a").ca_pin
    fleet.step("begin")
    assert fleet.identity("a").ca_pin == before
    fleet.step("switch")
    assert fleet.identity("a").ca_pin != before
    issuer = fleet.identity("a")
    assert pinned_join_context(issuer.ca_pem, issuer.ca_pin, "a", lambda: fleet.now).verify_mode


def test_a_crash_between_the_files_of_a_renewal_leaves_a_whole_identity(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authorities are widened, the certificate replaced, the authorities narrowed: cut off before each."""
    from node import identity as module

    fleet.step("begin")
    fleet.renew("b", "c")
    fleet.step("switch")
    fleet.renew("c")
    fleet.step("end")
    issuer, own = fleet.identity("a"), fleet.identity("b")
    renewed = issuer.issue(own.renewal_csr(), "b", ephemeral=False, now=fleet.now) + issuer.ca_pem
    real, written = module.replace_file, []
    for cut in range(1, 4):

        def replace(path: Path, content: bytes, cut: int = cut) -> None:
            written.append(path.name)
            if len(written) == cut:
                raise OSError("the power is gone")
            real(path, content)

        written.clear()
        monkeypatch.setattr(module, "replace_file", replace)
        with suppress(OSError):
            replace_certificate(fleet.contexts("b").reload(), renewed, now=fleet.now)
        assert Identity.load(own.folder.parent, now=fleet.now).node == "b"
    assert len(Identity.load(own.folder.parent, now=fleet.now).authorities) == 1
