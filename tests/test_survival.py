"""What this node's end would lose, what a notice could save, when pushing is urgent; how fast bytes leave."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

from node.spot_answers import SpotAnswers
from protocol import effects as f
from protocol.debts import Debt
from protocol.fleet import Bandwidth, Fleet, Host
from protocol.membership import FOR_EVER_MS
from protocol.placement import Seat
from protocol.survival import CARRIED_BYTES_MIN, is_too_much, is_urgent, measure
from protocol.uplink import Uplink
from tests.replicas import Bench, fleet, only, record, store_of

MB = 1_000_000


def debt(size: int, *holders: str, kind: str = "npz") -> Debt:
    made = record(f"{kind}/{size}", 5)
    receipts = {store_of(node): Seat(node, store_of(node), "one", False) for node in holders}
    return Debt(
        type(made)(made.name, made.hlc, made.origin, made.digest, made.blake3, size), True, b"", receipts=receipts
    )


def test_what_somebody_else_has_is_not_lost_though_it_is_not_durable() -> None:
    meter = measure([debt(5 * MB), debt(7 * MB, "beta"), debt(MB, kind="game")], 10, MB)
    assert (meter.lost_artifacts, meter.lost_bytes, meter.lost_kinds) == (2, 6 * MB, ("game", "npz"))


def test_a_notice_saves_as_many_as_its_time_carries_the_smallest_first() -> None:
    meter = measure([debt(5 * MB), debt(2 * MB), debt(MB)], 5, MB)
    assert (meter.savable_artifacts, meter.savable_bytes) == (2, 3 * MB)  # four fifths of five seconds


def test_without_a_notice_nothing_is_saved_and_without_a_limit_everything() -> None:
    assert measure([debt(MB)], 0, 100 * MB).savable_artifacts == 0
    assert measure([debt(900 * MB)], 5, None).savable_artifacts == 1
    assert Fleet("x", hosts={"v": Host("v", provider="vast")}).notice_seconds("v") == 0
    assert Fleet("x", hosts={"v": Host("v", provider="gcp")}).notice_seconds("v") == 25


def test_pushing_is_urgent_from_half_of_what_can_be_carried_and_too_much_above_the_whole() -> None:
    assert not is_urgent(39 * MB, 100, MB)
    assert is_urgent(41 * MB, 100, MB)
    assert not is_too_much(80 * MB, 100, MB)
    assert is_too_much(81 * MB, 100, MB)
    assert not is_too_much(CARRIED_BYTES_MIN, 0, MB)  # without a notice something must still be on its way
    assert not is_too_much(1 << 40, 100, None)


def urgent_upload(seconds: float, ephemeral: bool) -> str:
    """The priority of the upload of an artifact of 20 MB, with an uplink of 1 MB/s and so long a notice."""
    host = Host("alpha", address="alpha:7946", ephemeral=ephemeral, bandwidth_limit=Bandwidth(MB),
                overrides={"flush_seconds": seconds})  # fmt: skip
    alpha = Bench(of=fleet(host)).boot().connect("beta", "gamma")
    debt = alpha.replica.debts
    made = record("npz/large", 5, origin="alpha")
    debt.add(replace(made, size=20 * MB), own=True)
    alpha.accepted("npz/small", 6)
    offers = [o for lane in alpha.replica.sending.lanes.values() for o in lane.offers.values()]
    return offers[-1].priority


def test_an_ephemeral_host_whose_debt_nears_its_notice_pushes_before_all_else() -> None:
    assert urgent_upload(10.0, ephemeral=True) == "high"
    assert urgent_upload(100.0, ephemeral=True) == "normal"
    assert urgent_upload(10.0, ephemeral=False) == "normal"


# --- back-pressure ---


class Pressed:
    """As much of an agent as back-pressure looks at: so much at risk, for so many looks."""

    def __init__(self, ephemeral: bool, sessions: int, looks: int) -> None:
        self.looks = looks
        own = SimpleNamespace(ephemeral=ephemeral)
        members = SimpleNamespace(own=own, sessions=dict.fromkeys(range(sessions)))
        sending = SimpleNamespace(uplink_rate=lambda: MB)
        debts = SimpleNamespace(own_bytes=self.own_bytes)
        ctx = SimpleNamespace(notice_seconds=100)
        self.replica = SimpleNamespace(members=members, sending=sending, debts=debts, ctx=ctx)

    def own_bytes(self) -> int:
        self.looks -= 1
        return 81 * MB if self.looks >= 0 else 79 * MB

    def eased(self, timeout_seconds: float) -> int:
        """How many looks were left when the put went on."""
        answers = SpotAnswers()
        answers.agent = self  # type: ignore[assignment]
        asyncio.run(answers.ease(timeout_seconds))
        return self.looks


def test_a_put_that_waits_is_held_back_while_the_debt_passes_what_the_notice_carries() -> None:
    assert Pressed(ephemeral=True, sessions=2, looks=3).eased(30.0) == -1


def test_it_is_held_back_no_longer_than_it_would_wait() -> None:
    assert Pressed(ephemeral=True, sessions=2, looks=10_000).eased(0.2) > 9_000


def test_nobody_is_held_back_on_persistent_hosts_nor_where_nobody_can_be_reached() -> None:
    assert Pressed(ephemeral=False, sessions=2, looks=5).eased(30.0) == 5
    assert Pressed(ephemeral=True, sessions=0, looks=5).eased(30.0) == 5


# --- gone at once ---


def test_an_ephemeral_node_that_died_is_gone_at_once_and_a_persistent_one_has_its_grace() -> None:
    for ephemeral in (True, False):
        alpha = Bench().boot().connect("beta", "gamma").connect("delta", ephemeral=ephemeral)
        alpha.loses("delta")
        assert (alpha.replica.members.gone_ms("delta") == FOR_EVER_MS) == ephemeral


def test_an_ephemeral_node_that_was_not_seen_yet_in_this_life_is_not_called_gone() -> None:
    """At a start nobody is connected: their copies still count, or every restart would begin a repair of everything."""
    of = fleet(Host("delta", address="delta:7946", ephemeral=True))
    assert Bench(of=of).boot().replica.members.gone_ms("delta") < FOR_EVER_MS


def test_a_death_with_a_debt_is_reported_at_once() -> None:
    alpha = Bench().boot().connect("beta").connect("delta", ephemeral=True, at_risk_count=3, at_risk_bytes=900)
    out = alpha.loses("delta")
    (report,) = [r for r in only(out, f.Report) if r.event == "orphans"]
    assert "delta is gone with 3 artifacts (900 bytes) at risk" in report.message


# --- the uplink ---


def test_the_limit_is_believed_until_something_is_seen() -> None:
    assert Uplink().rate(5 * MB, 0) == 5 * MB
    assert Uplink().rate(None, 0) is None


def test_a_link_that_gives_less_than_the_limit_is_found_out_while_nothing_arrives() -> None:
    uplink = Uplink()
    uplink.started(1, MB, 0)
    assert uplink.rate(100 * MB, 4_000) == MB // 4  # at most all of it has left by now
    uplink.delivered(1, MB, 8_000)
    assert uplink.rate(None, 8_000) == MB // 8


def test_a_limit_that_does_not_limit_is_found_out_by_what_arrives() -> None:
    uplink = Uplink()
    uplink.started(1, 4 * MB, 0)
    uplink.started(2, 4 * MB, 0)
    uplink.delivered(1, 4 * MB, 1_000)
    assert uplink.rate(MB, 1_000) == 4 * MB


def test_uploads_that_broke_are_not_taken_for_a_slow_link() -> None:
    uplink = Uplink()
    uplink.started(1, 4 * MB, 0)
    uplink.started(2, 4 * MB, 0)
    uplink.ended(1)
    assert uplink.rate(3 * MB, 1_000) == 3 * MB
