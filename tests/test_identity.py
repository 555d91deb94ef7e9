"""The identity folder and the certificates in it: made, checked, joined, renewed, refused."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from node import identity as identity_module
from node import secret_files
from node.certificates import (
    BACKDATED_SECONDS,
    DAY_SECONDS,
    CertificateError,
    ca_pin,
    create_ca,
    create_csr,
    csr_key_sha256,
    describe,
    issue,
    issued_by,
    key_matches,
    renewal_due,
)
from node.identity import Identity, IdentityError, begin_join, init_identity, install_identity, replace_certificate
from protocol.names import NameRefused

NOW = 1_800_000_000


def join(directory: Path, issuer: Identity, node: str, *, now: float = NOW, anew: bool = False) -> Identity:
    csr = begin_join(directory, node, anew=anew)
    certificate = issuer.issue(csr, node, ephemeral=False, now=now)
    return install_identity(directory, issuer.ca_pem, certificate, node=node, pin=issuer.ca_pin, now=now, anew=anew)


@pytest.fixture
def issuer(tmp_path: Path) -> Identity:
    return init_identity(tmp_path / "issuer", "fleet", "a1", now=NOW)


def test_the_issuer_decides_every_name_whatever_the_request_asks_for() -> None:
    ca_key, ca_pem = create_ca("my fleet/é", now=NOW)
    _, csr = create_csr("somebody-else")
    facts = describe(issue(ca_key, ca_pem, csr, "gh200-a.lan", ephemeral=False, now=NOW))
    assert (facts.node, facts.cluster, facts.ephemeral) == ("gh200-a.lan", "my fleet/é", False)
    assert (facts.not_before, facts.not_after) == (NOW - BACKDATED_SECONDS, NOW + 90 * DAY_SECONDS)
    assert facts.joined_at == NOW


def test_an_ephemeral_certificate_lives_seven_days_and_says_so() -> None:
    ca_key, ca_pem = create_ca("fleet", now=NOW)
    facts = describe(issue(ca_key, ca_pem, create_csr("vast-1")[1], "vast-1", ephemeral=True, now=NOW))
    assert facts.ephemeral
    assert facts.not_after == NOW + 7 * DAY_SECONDS


def test_no_certificate_outlives_its_authority_and_an_expired_authority_issues_none() -> None:
    ca_key, ca_pem = create_ca("fleet", now=NOW - 3649 * DAY_SECONDS)
    csr = create_csr("a1")[1]
    facts = describe(issue(ca_key, ca_pem, csr, "a1", ephemeral=False, now=NOW))
    assert facts.not_after == NOW + DAY_SECONDS
    with pytest.raises(CertificateError, match="authority expired"):
        issue(ca_key, ca_pem, csr, "a1", ephemeral=False, now=NOW + DAY_SECONDS)


def test_renewal_is_due_from_two_thirds_of_life_and_keeps_the_time_of_joining() -> None:
    ca_key, ca_pem = create_ca("fleet", now=NOW)
    csr = create_csr("a1")[1]
    facts = describe(issue(ca_key, ca_pem, csr, "a1", ephemeral=False, now=NOW))
    assert not renewal_due(facts, NOW + 59 * DAY_SECONDS)
    assert renewal_due(facts, NOW + 60 * DAY_SECONDS)
    renewed = describe(issue(ca_key, ca_pem, csr, "a1", ephemeral=False, now=NOW + 1000, joined_at=facts.joined_at))
    assert renewed.joined_at == NOW
    assert renewed.serial != facts.serial


def test_node_ids_that_are_no_host_names_get_a_certificate_without_one() -> None:
    ca_key, ca_pem = create_ca("fleet", now=NOW)
    for node in ("gpu_7", "a..b", "a-.b"):
        certificate = issue(ca_key, ca_pem, create_csr(node)[1], node, ephemeral=False, now=NOW)
        assert describe(certificate).node == node


@pytest.mark.parametrize("node", ["", "UPPER", "a/b", "-a", "a" * 64, "../x", "a\n"])
def test_an_unusable_node_name_is_never_certified(node: str) -> None:
    ca_key, ca_pem = create_ca("fleet", now=NOW)
    csr = create_csr("a1")[1]
    with pytest.raises(NameRefused, match="not usable"):
        issue(ca_key, ca_pem, csr, node, ephemeral=False, now=NOW)


@pytest.mark.parametrize("csr", [b"", b"junk", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", b"x" * 20_000])
def test_a_broken_request_is_refused_in_one_sentence(csr: bytes) -> None:
    ca_key, ca_pem = create_ca("fleet", now=NOW)
    with pytest.raises(CertificateError, match="signing request"):
        issue(ca_key, ca_pem, csr, "a1", ephemeral=False, now=NOW)


def test_a_request_signed_by_another_key_is_refused() -> None:
    ca_key, ca_pem = create_ca("fleet", now=NOW)
    lines = create_csr("a1")[1].decode().splitlines()
    der = bytearray(base64.b64decode("".join(lines[1:-1])))
    der[-1] ^= 1  # the last byte belongs to the signature
    forged = "\n".join((lines[0], base64.b64encode(der).decode(), lines[-1])).encode()
    with pytest.raises(CertificateError, match="not signed with its own key"):
        issue(ca_key, ca_pem, forged, "a1", ephemeral=False, now=NOW)


def test_an_authority_with_the_wrong_key_issues_nothing() -> None:
    ca_pem, other_key = create_ca("fleet", now=NOW)[1], create_ca("fleet", now=NOW)[0]
    with pytest.raises(CertificateError, match="do not belong together"):
        issue(other_key, ca_pem, create_csr("a1")[1], "a1", ephemeral=False, now=NOW)


def test_what_is_no_node_certificate_is_not_described_as_one() -> None:
    for content in (b"", b"junk", create_ca("fleet", now=NOW)[1], b"x" * 20_000):
        with pytest.raises(CertificateError):
            describe(content)


def test_a_signature_tells_a_namesake_authority_apart() -> None:
    ca_key, ca_pem = create_ca("fleet", now=NOW)
    namesake = create_ca("fleet", now=NOW)[1]
    key, csr = create_csr("a1")
    certificate = issue(ca_key, ca_pem, csr, "a1", ephemeral=False, now=NOW)
    assert issued_by(certificate, ca_pem)
    assert not issued_by(certificate, namesake)
    assert key_matches(key, certificate)
    assert not key_matches(create_csr("a1")[0], certificate)
    assert ca_pin(ca_pem) != ca_pin(namesake)


def test_openssl_accepts_our_chain_by_its_strict_rules(tmp_path: Path, issuer: Identity) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    for purpose in ("sslclient", "sslserver"):
        command = [openssl, "verify", "-x509_strict", "-no_check_time", "-purpose", purpose, "-CAfile"]
        result = subprocess.run(
            [*command, issuer.folder / "ca.pem", issuer.certificate_path], capture_output=True, text=True, check=False
        )
        assert result.stdout.strip().endswith(": OK"), result.stdout + result.stderr
    spki = subprocess.run(
        f"openssl x509 -in {issuer.folder / 'ca.pem'} -noout -pubkey | openssl pkey -pubin -outform DER",
        shell=True,
        capture_output=True,
        check=True,
    ).stdout
    assert hashlib.sha256(spki).hexdigest() == issuer.ca_pin


def test_init_makes_a_private_folder_with_an_issuer_in_it(tmp_path: Path) -> None:
    made = init_identity(tmp_path / "deep" / "er", "fleet", "a1", now=NOW)
    assert (made.cluster, made.node, made.issuer) == ("fleet", "a1", True)
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    assert sorted(path.name for path in made.folder.iterdir()) == ["ca.key", "ca.pem", "node.key", "node.pem"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.folder.iterdir()} == {0o600}
    assert [path.name for path in made.folder.parent.iterdir()] == ["identity"]


def test_init_refuses_a_folder_that_has_an_identity(issuer: Identity) -> None:
    with pytest.raises(IdentityError, match="never replaced") as refused:
        init_identity(issuer.folder.parent, "fleet", "a1", now=NOW)
    assert refused.value.reason == "exists"


def test_an_init_that_was_killed_leaves_nothing_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(staged: Path, directory: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(identity_module, "_move_into_place", killed)
        with pytest.raises(KeyboardInterrupt):
            init_identity(tmp_path, "fleet", "a1", now=NOW)
    with pytest.raises(IdentityError, match="spore init"):
        Identity.load(tmp_path, now=NOW)
    assert init_identity(tmp_path, "fleet", "a1", now=NOW).issuer


def test_a_missing_identity_names_both_ways_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"run `spore init .*` .* or `spore join TOKEN") as refused:
        Identity.load(tmp_path, now=NOW)
    assert refused.value.reason == "missing"


@pytest.mark.parametrize(("name", "mode"), [("", 0o750), ("node.key", 0o640), ("ca.key", 0o604)])
def test_an_identity_open_to_others_is_refused_with_the_command_that_mends_it(
    issuer: Identity, name: str, mode: int
) -> None:
    (issuer.folder / name).chmod(mode)
    with pytest.raises(IdentityError, match=r"chmod [67]00") as refused:
        Identity.load(issuer.folder.parent, now=NOW)
    assert refused.value.reason == "permissions"


@pytest.mark.parametrize("name", ["ca.pem", "node.pem", "node.key", "ca.key"])
def test_damaged_files_of_an_identity_are_refused_and_named(issuer: Identity, name: str) -> None:
    path = issuer.folder / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(IdentityError, match="is damaged") as refused:
        Identity.load(issuer.folder.parent, now=NOW)
    assert refused.value.reason == "damaged"


@pytest.mark.parametrize("name", ["ca.pem", "node.pem", "node.key"])
def test_a_missing_file_of_an_identity_is_named(issuer: Identity, name: str) -> None:
    (issuer.folder / name).unlink()
    with pytest.raises(IdentityError, match=f"{name} is missing"):
        Identity.load(issuer.folder.parent, now=NOW)


@pytest.mark.parametrize("name", ["node.key", "ca.key", "ca.pem"])
def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, issuer: Identity, name: str) -> None:
    other = init_identity(tmp_path / "other", "fleet", "a1", now=NOW)
    (issuer.folder / name).write_bytes((other.folder / name).read_bytes())
    with pytest.raises(IdentityError, match="right one") as refused:
        Identity.load(issuer.folder.parent, now=NOW)
    assert refused.value.reason == "mismatch"


def test_an_expired_identity_is_refused_and_sent_to_join_anew(issuer: Identity) -> None:
    with pytest.raises(IdentityError, match="has expired: run `spore join") as refused:
        Identity.load(issuer.folder.parent, now=NOW + 91 * DAY_SECONDS)
    assert refused.value.reason == "expired"


def test_an_identity_of_another_cluster_or_node_than_the_hosts_file_says_is_refused(issuer: Identity) -> None:
    directory = issuer.folder.parent
    assert Identity.load(directory, now=NOW, cluster="fleet", node="a1") == issuer
    with pytest.raises(IdentityError, match="belongs to cluster 'fleet' and the hosts file to 'fleet2'"):
        Identity.load(directory, now=NOW, cluster="fleet2")
    with pytest.raises(IdentityError, match="is of node 'a1', not of 'a2'"):
        Identity.load(directory, now=NOW, node="a2")


def test_a_join_ends_with_an_identity_that_is_no_issuer(tmp_path: Path, issuer: Identity) -> None:
    joined = join(tmp_path / "b", issuer, "b1")
    assert (joined.node, joined.cluster, joined.issuer) == ("b1", "fleet", False)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["identity"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in joined.folder.iterdir()} == {0o600}
    with pytest.raises(IdentityError, match="issuer: true"):
        joined.issue(joined.renewal_csr(), "b1", ephemeral=False, now=NOW)


def test_a_join_repeated_after_a_crash_has_the_same_key(tmp_path: Path) -> None:
    first, second = begin_join(tmp_path, "b1"), begin_join(tmp_path, "b1")
    assert csr_key_sha256(first) == csr_key_sha256(second)
    (tmp_path / "identity.joining" / "node.key").write_bytes(b"torn")
    assert csr_key_sha256(begin_join(tmp_path, "b1")) != csr_key_sha256(first)


def test_what_the_issuer_returns_is_checked_against_pin_key_and_name(tmp_path: Path, issuer: Identity) -> None:
    csr = begin_join(tmp_path / "b", "b1")
    right = issuer.issue(csr, "b1", ephemeral=False, now=NOW)
    other = init_identity(tmp_path / "other", "fleet", "a1", now=NOW)

    def install(ca_pem: bytes, certificate: bytes, pin: str = issuer.ca_pin, now: float = NOW) -> None:
        install_identity(tmp_path / "b", ca_pem, certificate, node="b1", pin=pin, now=now)

    cases = [
        ((issuer.ca_pem, right, other.ca_pin), "not the one pinned"),
        ((other.ca_pem, right, other.ca_pin), "did not sign"),
        ((issuer.ca_pem, issuer.issue(csr, "b2", ephemeral=False, now=NOW)), "for 'b2', not for 'b1'"),
        ((issuer.ca_pem, issuer.issue(create_csr("b1")[1], "b1", ephemeral=False, now=NOW)), "another key"),
        ((issuer.ca_pem, b"<html>502</html>"), "returned something unusable"),
        ((issuer.ca_pem, right, issuer.ca_pin, NOW + 91 * DAY_SECONDS), "compare the clocks"),
    ]
    for arguments, sentence in cases:
        with pytest.raises(IdentityError, match=sentence):
            install(*arguments)
        assert not (tmp_path / "b" / "identity").exists()
    install(issuer.ca_pem, right)


def test_joining_anew_replaces_an_identity_only_when_asked_to_and_never_an_issuer(
    tmp_path: Path, issuer: Identity
) -> None:
    first = join(tmp_path / "b", issuer, "b1")
    with pytest.raises(IdentityError, match="already has an identity"):
        begin_join(tmp_path / "b", "b1")
    second = join(tmp_path / "b", issuer, "b1", now=NOW + 5, anew=True)
    assert second.facts.joined_at == first.facts.joined_at + 5
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["identity"]
    with pytest.raises(IdentityError, match="never replaced"):
        begin_join(issuer.folder.parent, "a1", anew=True)


def test_joining_anew_survives_a_crash_between_its_two_renames(
    tmp_path: Path, issuer: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    join(tmp_path / "b", issuer, "b1")
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name == "identity.joining":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            join(tmp_path / "b", issuer, "b1", now=NOW + 5, anew=True)
    with pytest.raises(IdentityError, match="spore join TOKEN"):
        Identity.load(tmp_path / "b", now=NOW + 5)
    pending = (tmp_path / "b" / "identity.joining" / "node.key").read_bytes()
    again = join(tmp_path / "b", issuer, "b1", now=NOW + 9)
    assert again.key_path.read_bytes() == pending
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["identity"]


def test_a_renewed_certificate_takes_the_place_of_the_old(tmp_path: Path, issuer: Identity) -> None:
    joined = join(tmp_path / "b", issuer, "b1")
    renewed = issuer.issue(joined.renewal_csr(), "b1", ephemeral=False, now=NOW + 100, joined_at=joined.facts.joined_at)
    fresh = replace_certificate(joined, renewed, now=NOW + 100)
    assert fresh == Identity.load(tmp_path / "b", now=NOW + 100)
    assert fresh.facts.not_after == joined.facts.not_after + 100
    assert fresh.facts.joined_at == joined.facts.joined_at


def test_a_renewal_that_is_not_ours_or_no_later_is_refused_and_the_old_kept(tmp_path: Path, issuer: Identity) -> None:
    joined = join(tmp_path / "b", issuer, "b1")
    csr, later = joined.renewal_csr(), NOW + 100
    cases = [
        (issuer.issue(csr, "b2", ephemeral=False, now=later), "not for 'b1'"),
        (issuer.issue(create_csr("b1")[1], "b1", ephemeral=False, now=later), "another key"),
        (issuer.issue(csr, "b1", ephemeral=False, now=NOW - 5), "ends before ours"),
        (b"", "unusable"),
    ]
    for certificate, sentence in cases:
        with pytest.raises(IdentityError, match=sentence):
            replace_certificate(joined, certificate, now=later)
    assert Identity.load(tmp_path / "b", now=NOW) == joined


@pytest.mark.parametrize("failing", ["open", "fsync", "rename", "fchmod"])
def test_a_failed_replacement_leaves_the_old_file_whole_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "node.pem"
    secret_files.replace_file(path, b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path if failing == "rename" else os, failing, fail)
        with pytest.raises(OSError, match="No space left"):
            secret_files.replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["node.pem"]


def test_a_replacement_is_synced_before_it_is_named_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_rename(self: Path, target: Path) -> Path:
        order.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    secret_files.replace_file(tmp_path / "x", b"new")
    assert order == ["file", "rename", "folder"]


def test_a_leftover_of_a_crash_is_overwritten_and_a_planted_link_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    (tmp_path / ".node.key.new").symlink_to(victim)
    secret_files.replace_file(tmp_path / "node.key", b"new")
    assert victim.read_bytes() == b"untouched"
    assert (tmp_path / "node.key").read_bytes() == b"new"
    assert not (tmp_path / "node.key").is_symlink()
