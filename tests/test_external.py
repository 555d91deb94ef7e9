"""Copies outside the fleet: one node for each scheduled moment, hand-over, and what lies over there is verified."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from node.bulk_client import Job
from node.config import inspect_fleet
from node.external_copy import VERIFIED, ExternalCopy, Item, Outcome, remote_name
from node.schedules import last_due, next_due
from node.transports.programs import ProgramFailed
from node.transports.ssh import reach
from protocol.chunks import digest_of
from protocol.external import (
    DONE,
    FAILED,
    RUNNING,
    SILENT_SECONDS,
    START_SECONDS,
    Attempt,
    attempt_of,
    record_name,
    runner,
)
from protocol.fleet import Host
from protocol.values import NO_DIGEST, Record
from tests.sshd import Sshd, sshd_in

NODES = [f"n{number}" for number in range(6)]
DUE = 1_760_000_400


# --- who ---


def first(*attempts: Attempt, now: int = DUE, nodes: list[str] = NODES) -> str | None:
    return runner("key", DUE, now, nodes, attempts)


@settings(deadline=None)
@given(st.integers(0, 10**9), st.lists(st.sampled_from(NODES), unique=True), st.randoms())
def test_every_node_says_the_same_one(occurrence: int, nodes: list[str], chance: object) -> None:
    shuffled = list(nodes)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    chosen = runner("key", occurrence, occurrence, nodes, [])
    assert chosen == runner("key", occurrence, occurrence, shuffled, [])
    assert (chosen in nodes) == bool(nodes)


def test_another_moment_is_another_nodes_turn() -> None:
    assert len({runner("key", DUE + 60 * number, DUE, NODES, []) for number in range(50)}) == len(NODES)


def test_what_is_done_is_done_by_nobody_again() -> None:
    assert first(Attempt("n3", DUE, DONE, DUE + 5)) is None
    assert first(Attempt("n3", DUE - 60, DONE, DUE - 55)) is not None


def test_who_fails_is_followed_by_the_next_until_all_have_failed() -> None:
    failed: list[Attempt] = []
    for _ in NODES:
        chosen = first(*failed)
        assert chosen is not None
        assert chosen not in [attempt.node for attempt in failed]
        failed.append(Attempt(chosen, DUE, FAILED, DUE))
    assert first(*failed) is None


def test_who_is_gone_is_followed_by_the_next() -> None:
    chosen = first()
    left = [node for node in NODES if node != chosen]
    assert first(Attempt(str(chosen), DUE, RUNNING, DUE), nodes=left) in left


def test_who_runs_goes_on_and_nobody_joins() -> None:
    assert first(Attempt("n2", DUE, RUNNING, DUE), now=DUE + SILENT_SECONDS - 1) == "n2"


def test_who_falls_silent_in_the_middle_is_followed_by_the_next() -> None:
    chosen = first(Attempt("n2", DUE, RUNNING, DUE), now=DUE + SILENT_SECONDS)
    assert chosen not in (None, "n2")


def test_who_does_not_begin_is_passed_over_for_a_while() -> None:
    order = [first(now=DUE + START_SECONDS * turn) for turn in range(len(NODES) + 3)]
    assert {*order} == {*NODES}
    assert order[-1] == order[-2]


def test_an_attempt_is_told_in_a_record_of_its_own_node() -> None:
    attempt = Attempt("n1", DUE, DONE, DUE + 9, 7, 1_000, 2, "why")
    made = Record(record_name("key", "n1"), 1, "n1", NO_DIGEST, NO_DIGEST, 0, meta=attempt.meta)
    assert attempt_of(made) == attempt
    assert attempt_of(Record(record_name("key", "n1"), 1, "n2", NO_DIGEST, NO_DIGEST, 0, meta=attempt.meta)) is None
    assert attempt_of(Record(record_name("key", "n1"), 1, "n1", NO_DIGEST, NO_DIGEST, 0)) is None


# --- when ---


def test_a_schedule_is_read_in_utc() -> None:
    noon = 1_760_011_200  # 9 October 2025, 12:00:00 UTC
    assert (last_due("0 */6 * * *", noon), next_due("0 */6 * * *", noon)) == (noon, noon + 6 * 3600)
    assert last_due("0 */6 * * *", noon - 0.5) == noon - 6 * 3600
    assert last_due("30 4 * * 1", noon) % 86_400 == 4 * 3600 + 30 * 60


@pytest.mark.parametrize("text", ["0 */6 * *", "61 * * * *", "hourly", "* * * * 9"])
def test_a_bad_schedule_is_an_error_of_the_hosts_file(text: str) -> None:
    storage = f'{{host: backup.example.com, path: /b, schedule: "{text}"}}'
    found = inspect_fleet(f"cluster: x\nsync_routing: {{allowed_external_storage: [{storage}]}}\nhosts: {{a: }}\n")
    assert [problem for problem in found.errors if "schedule" in problem.path]


# --- over there ---


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd_in(tmp_path_factory.mktemp("sshd")) as made:
        yield made


def item(folder: Path, name: str, content: bytes) -> Item:
    path = folder / f"{blake3(content).hexdigest()}"
    path.write_bytes(content)
    digest, plain = digest_of(content)
    return Item(Record(name, 5, "a", digest, plain, len(content)), path)


def copier(sshd: Sshd, there: Path) -> ExternalCopy:
    return ExternalCopy(reach(Host("outside", ssh=sshd.entry()), there), str(there), Job(), None)


def sent(copy: ExternalCopy, *items: Item) -> Outcome:
    return copy.send(items, lambda outcome: None)


def test_what_is_copied_is_verified_and_noted_and_an_older_version_stays(sshd: Sshd, tmp_path: Path) -> None:
    there = tmp_path / "there it's"
    copy = copier(sshd, there)
    assert copy.verified() == frozenset()
    one, two = item(tmp_path, "model/models/best.pth", b"one" * 1000), item(tmp_path, "model/models/best.pth", b"two")
    assert sent(copy, one) == Outcome(1, 3000)
    assert sent(copy, two, item(tmp_path, "game/n1/x y'z.db", b"game")) == Outcome(2, 7)
    assert {path.read_bytes() for path in (there / "model/models").iterdir()} == {b"one" * 1000, b"two"}
    assert copy.verified() >= {one.name, two.name}


def test_a_wrong_file_over_there_is_found_and_replaced_by_the_right_one(sshd: Sshd, tmp_path: Path) -> None:
    """It has the right name, size and time: only its hash tells."""
    there = tmp_path / "there"
    copy, made = copier(sshd, there), item(tmp_path, "npz/a", b"right")
    copy.verified()
    target = there / made.name
    target.parent.mkdir(parents=True)
    target.write_bytes(b"wrong")
    shutil.copystat(made.path, target)
    assert sent(copy, made).files == 1
    assert target.read_bytes() == b"right"


def test_a_file_that_is_not_what_its_record_says_is_not_noted(sshd: Sshd, tmp_path: Path) -> None:
    copy, made = copier(sshd, tmp_path / "there"), item(tmp_path, "npz/a", b"right")
    copy.verified()
    made.path.write_bytes(b"changed meanwhile")
    assert sent(copy, made) == Outcome(0, 0, ["npz/a"])
    assert copy.verified() == frozenset()


def test_without_b3sum_over_there_sha256_decides(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy, made = copier(sshd, tmp_path / "there"), item(tmp_path, "npz/a", b"right")
    copy.verified()
    remote = copy._remote
    monkeypatch.setattr(copy, "_remote", lambda command, s: remote(command.replace("command -v b3sum", "false"), s))
    assert sent(copy, made).files == 1
    assert "sha256sum" not in (tmp_path / "there" / VERIFIED).read_text()


def test_nothing_over_there_is_ever_deleted(sshd: Sshd, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "somebody's").write_bytes(b"own")
    copy = copier(sshd, there)
    copy.verified()
    sent(copy, item(tmp_path, "npz/a", b"right"))
    assert (there / "somebody's").read_bytes() == b"own"


def test_a_place_that_cannot_be_written_is_an_error_in_a_sentence(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ProgramFailed, match=r"ssh ended with"):
        copier(sshd, tmp_path / "file" / "below").verified()


def test_a_long_name_still_fits_and_tells_its_version(tmp_path: Path) -> None:
    made = item(tmp_path, f"npz/{'ä' * 127}", b"x")
    assert len(remote_name(made.record).rpartition("/")[2].encode()) <= 255
