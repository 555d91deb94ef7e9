"""The store and its claims: one UUID for a shared root, and one acceptor for a file that several members see."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from uuid import UUID

import pytest

from storage.claims import CLAIM_SECONDS_MAX, Claims
from storage.files import FileLayer
from storage.refusals import ClaimedElsewhere, StoreRefused
from storage.store import open_store
from tests.depots import failing_once
from tests.recording import FailingFiles


def test_a_new_store_has_its_folders_and_a_uuid_that_stays(tmp_path: Path) -> None:
    first = open_store(tmp_path / "files", "node-a", FileLayer())
    again = open_store(tmp_path / "files", "node-a", FileLayer())

    assert first == again
    assert first.uuid == UUID((tmp_path / "files/.spore/store").read_text().strip()).bytes
    assert sorted(os.listdir(first.own)) == ["claims", "staging", "store", "versions"]
    assert os.listdir(first.own / "staging") == ["node-a"]


def test_members_that_open_a_shared_root_together_agree_on_one_uuid(tmp_path: Path) -> None:
    found = []
    barrier = threading.Barrier(6)

    def open_one(node: str) -> None:
        barrier.wait()
        found.append(open_store(tmp_path / "files", node, FileLayer(), shared=True).uuid)

    threads = [threading.Thread(target=open_one, args=(f"node-{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 6
    assert len(set(found)) == 1
    assert not [name for name in os.listdir(tmp_path / "files/.spore") if name.endswith(".new")]


@pytest.mark.parametrize("content", [b"", b"not a uuid", b"\xff\xfe", b"x" * 4096])
def test_a_garbled_store_file_is_refused_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    open_store(tmp_path / "files", "node-a", FileLayer())
    (tmp_path / "files/.spore/store").write_bytes(content)

    with pytest.raises(StoreRefused, match="does not hold a UUID; restore it from a backup, or move it away"):
        open_store(tmp_path / "files", "node-a", FileLayer())


def test_an_own_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "files/.spore").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StoreRefused, match="not a plain folder"):
        open_store(tmp_path / "files", "node-a", FileLayer())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_store_that_failed_to_open_at_any_call_opens_afterwards(tmp_path: Path, code: int) -> None:
    verbs = {"open", "write", "fsync", "fsync_dir", "mkdir", "pread"}
    for at in range(1, 40):
        root = tmp_path / str(at)
        failing = FailingFiles(verbs=verbs, at=at, code=code)
        if not failing_once(lambda root=root, failing=failing: open_store(root, "node-a", failing)):  # type: ignore[misc]
            assert not failing.has_failed
            return
        assert open_store(root, "node-a", FileLayer()) == open_store(root, "node-a", FileLayer())
    pytest.fail("a store needs fewer than 40 calls to open")


def _claims(root: Path, node: str, shared: bool = True) -> Claims:
    return Claims(open_store(root, node, FileLayer(), shared), FileLayer())


def test_a_file_is_claimed_by_one_member_only(tmp_path: Path) -> None:
    a, b = _claims(tmp_path, "node-a"), _claims(tmp_path, "node-b")
    a.claim("games/1.db", 10, 77)
    a.claim("games/1.db", 10, 77)

    with pytest.raises(ClaimedElsewhere, match="node-a claimed this file") as refused:
        b.claim("games/1.db", 10, 77)
    assert refused.value.claimer == "node-a"
    b.claim("games/1.db", 11, 78)  # another state of the file is another claim


def test_what_one_member_publishes_no_other_claims(tmp_path: Path) -> None:
    _claims(tmp_path, "node-a").note("models/m", 10, 77)

    with pytest.raises(ClaimedElsewhere):
        _claims(tmp_path, "node-b").claim("models/m", 10, 77)


def test_what_a_member_has_recorded_may_make_room_and_what_it_only_claims_may_not(tmp_path: Path) -> None:
    a, b = _claims(tmp_path, "node-a"), _claims(tmp_path, "node-b")
    a.claim("models/m", 10, 77)
    b.record("models/m", 10, 77)  # it is not b's to say
    assert not b.recorded("models/m", 10, 77)
    for _ in range(2):
        a.record("models/m", 10, 77)
    assert b.recorded("models/m", 10, 77)
    assert not b.recorded("models/m", 10, 78)
    with pytest.raises(ClaimedElsewhere, match="node-a claimed this file"):
        b.claim("models/m", 10, 77, take_over=True)


def test_a_claim_can_be_taken_over_once(tmp_path: Path) -> None:
    a, b, c = (_claims(tmp_path, node) for node in ("node-a", "node-b", "node-c"))
    a.claim("games/1.db", 10, 77)
    b.claim("games/1.db", 10, 77, take_over=True)

    with pytest.raises(ClaimedElsewhere, match="node-b"):
        c.claim("games/1.db", 10, 77)


def test_claims_of_a_week_ago_are_swept_and_others_stay(tmp_path: Path) -> None:
    claims = _claims(tmp_path, "node-a")
    claims.claim("old", 1, 1)
    claims.claim("new", 1, 1)
    old = claims._path("old", 1, 1)
    os.utime(old, (1_000, 1_000))

    assert claims.sweep(1_000 + CLAIM_SECONDS_MAX) == 0
    assert claims.sweep(1_001 + CLAIM_SECONDS_MAX) == 1
    assert not old.exists()
    with pytest.raises(ClaimedElsewhere):
        _claims(tmp_path, "node-b").claim("new", 1, 1)


def test_a_store_of_one_node_needs_no_claims(tmp_path: Path) -> None:
    claims = _claims(tmp_path, "node-a", shared=False)
    claims.claim("games/1.db", 10, 77)
    claims.note("games/2.db", 10, 77)
    assert not claims.recorded("games/2.db", 10, 77)

    assert claims.sweep(1e12) == 0
    assert os.listdir(tmp_path / ".spore/claims") == []
