"""Power loss in the store: after every prefix of what reached the disk, promises hold and no name lies.

The recorder of `recording.py` keeps the journal; each state it permits is laid down as a folder, and a new depot
opens on it. What lay there before the recorder was made counts as durable.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.chunks import CHUNK_BYTES
from protocol.effects import Kept, Publication
from protocol.values import Parcel, Record
from storage.files import FileLayer
from storage.publication import SYNC_EACH_MAX
from storage.store import open_store
from tests.depots import Bench, chunks_of, hashed, record_of, some_bytes
from tests.recording import CrashState, RecordingFiles, crash_states

KEPT = some_bytes(70_000)
OLD, NEW = some_bytes(80_000, 1), some_bytes(90_000, 2)
TWO = some_bytes(CHUNK_BYTES + 700)
PATH = "models/best.pth"
SEEDS = 4


class PlainRecordingFiles(RecordingFiles):
    """A recorder on a file system without reflink, so that the journal is the same on every machine."""

    def reflink(self, source_fd: int, target_fd: int) -> None:
        raise OSError(95, "no reflink here")


def _after(folder: Path, recorder: RecordingFiles) -> Iterator[tuple[CrashState, Bench]]:
    """Every state after a crash, with a depot opened on it."""
    for number, state in enumerate(crash_states(recorder, random_seeds=SEEDS)):
        laid = state.write_to(folder / "after" / str(number))
        bench = Bench(laid)
        bench.depot.sweep()
        yield state, bench
        bench.depot.close()
        shutil.rmtree(laid)


def _no_name_lies(bench: Bench, good: dict[str, tuple[bytes, ...]], why: str) -> None:
    """Whatever lies under a final name, or under a digest in `versions/`, is whole."""
    for path, contents in good.items():
        if (bench.root / path).exists():
            assert (bench.root / path).read_bytes() in contents, why
    for path_ in bench.store.versions.iterdir():
        assert hashed(path_.read_bytes())[0].hex() == path_.name, why


def _recorded(tmp_path: Path, prepare: Callable[[Bench], object] = lambda bench: None) -> tuple[Bench, RecordingFiles]:
    """A depot whose every operation from now on is recorded; what `prepare` does is durable."""
    before = Bench(tmp_path / "disk")
    prepare(before)
    before.depot.close()
    recorder = PlainRecordingFiles(tmp_path / "disk")
    return Bench(tmp_path / "disk", recorder, before.manifest), recorder


def test_a_new_store_keeps_its_uuid(tmp_path: Path) -> None:
    (tmp_path / "disk/files").mkdir(parents=True)
    recorder = RecordingFiles(tmp_path / "disk")
    promised = open_store(tmp_path / "disk/files", "here", recorder).uuid
    recorder.mark("opened")
    for number, state in enumerate(crash_states(recorder, random_seeds=SEEDS)):
        laid = state.write_to(tmp_path / "after" / str(number))
        found = open_store(laid / "files", "here", FileLayer()).uuid
        assert found == promised or not state.marks, state.why


@pytest.mark.parametrize("how", ["file", "bytes", "snapshot"])
def test_what_was_accepted_is_there(tmp_path: Path, how: str) -> None:
    bench, recorder = _recorded(tmp_path, lambda bench: bench.write(PATH, KEPT))
    if how == "file":
        accepted = bench.depot.accept_file(PATH)
    elif how == "bytes":
        accepted = bench.depot.accept_stream([KEPT[:30_000], KEPT[30_000:]])
    else:
        draft = bench.depot.draft()
        fd = recorder.open(draft, 0o102)
        recorder.write(fd, KEPT)
        recorder.close(fd)
        accepted = bench.depot.accept_draft(draft)
    recorder.mark("accepted")
    assert isinstance(accepted.source, Kept)
    for state, after in _after(tmp_path, recorder):
        _no_name_lies(after, {PATH: (KEPT,)}, state.why)
        assert (after.root / PATH).read_bytes() == KEPT, state.why
        if state.marks:
            assert (after.root / accepted.source.place.path).read_bytes() == KEPT, state.why
        assert isinstance(after.depot.accept_bytes(KEPT).source, Kept), state.why


def test_a_mark_never_speaks_of_bytes_that_are_not_there(tmp_path: Path) -> None:
    bench, recorder = _recorded(tmp_path)
    record = record_of(TWO)
    bench.depot.reserve(1, [Parcel(record)])
    partial = bench.depot.partial(record)
    partial.set_leaves(hashed(TWO)[2])
    partial.write_chunk(1, chunks_of(TWO)[1])
    partial.mark()  # type: ignore[attr-defined]
    recorder.mark("marked")
    partial.write_chunk(0, chunks_of(TWO)[0])
    partial.mark()  # type: ignore[attr-defined]
    recorder.mark("complete")
    partial.close()
    for state, after in _after(tmp_path, recorder):
        present = _present(after, record)
        _are_right(after, record, present, state.why)
        assert len(state.marks) < 1 or 1 in present, state.why
        assert len(state.marks) < 2 or present == {0, 1}, state.why
        after.arrive(TWO, record)
        assert after.publish(record).done, state.why
        assert (after.root / PATH).read_bytes() == TWO, state.why


def test_a_stale_map_never_speaks_of_a_new_file(tmp_path: Path) -> None:
    record = record_of(TWO)
    bench, recorder = _recorded(tmp_path)
    bench.depot.reserve(1, [Parcel(record)])
    partial = bench.depot.partial(record)
    partial.set_leaves(hashed(TWO)[2])
    for index in (1, 0):
        partial.write_chunk(index, chunks_of(TWO)[index])
        partial.mark()  # type: ignore[attr-defined]
    partial.close()
    [(_, place)] = bench.publish(record).done
    bench.depot.unlink([place])
    bench.manifest.places.clear()
    recorder.mark("removed")
    bench.depot.reserve(2, [Parcel(record)])
    again = bench.depot.partial(record)
    again.set_leaves(hashed(TWO)[2])
    again.write_chunk(1, chunks_of(TWO)[1])
    again.mark()  # type: ignore[attr-defined]
    for state, after in _after(tmp_path, recorder):
        _are_right(after, record, _present(after, record), state.why)
        assert not state.marks or not (after.root / PATH).exists(), state.why
    again.close()
    bench.depot.close()


def _present(bench: Bench, record: Record) -> set[int]:
    assert bench.depot.reserve(1, [Parcel(record)]).refused == ("",)
    partial = bench.depot.partial(record)
    missing = {index for stripe in partial.missing() for index in range(stripe.first, stripe.first + stripe.count)}
    partial.close()
    return {0, 1} - missing


def _are_right(bench: Bench, record: Record, present: set[int], why: str) -> None:
    staged = (bench.store.staging / record.digest.hex()).read_bytes()
    for index in sorted(present):
        assert chunks_of(staged)[index] == chunks_of(TWO)[index], why


@pytest.mark.parametrize("content", [NEW, TWO], ids=["small", "chunked"])
def test_a_new_version_takes_the_place_of_the_old_one_and_neither_is_lost(tmp_path: Path, content: bytes) -> None:
    old, new = record_of(OLD, hlc=1), record_of(content, hlc=2)
    bench, recorder = _recorded(tmp_path, lambda bench: bench.publish(bench.arrive(OLD, old)))
    bench.arrive(content, new)
    outcome = bench.publish(new)
    assert outcome.moved
    recorder.mark("published")
    kept = Path(outcome.moved[0][1].path)
    for state, after in _after(tmp_path, recorder):
        _no_name_lies(after, {PATH: (OLD, content)}, state.why)
        current = (after.root / PATH).read_bytes()
        old_is_kept = (after.root / kept).exists()  # and whole: no name lies
        assert current == OLD or old_is_kept, state.why
        if state.marks:
            assert current == content, state.why
            assert old_is_kept, state.why


def test_many_files_published_at_once_are_all_there(tmp_path: Path) -> None:
    bench, recorder = _recorded(tmp_path)
    contents = [some_bytes(600, n) for n in range(SYNC_EACH_MAX + 2)]
    records = [record_of(content, f"npz/{n}") for n, content in enumerate(contents)]
    paths = [f"training/{n % 2}/{n}" for n in range(len(records))]
    bench.depot.arrive_small(list(zip(records, contents, strict=True)))
    outcome = bench.depot.publish([Publication(r, p) for r, p in zip(records, paths, strict=True)])
    assert outcome.failed == ()
    recorder.mark("published")
    for state, after in _after(tmp_path, recorder):
        _no_name_lies(after, {p: (c,) for p, c in zip(paths, contents, strict=True)}, state.why)
        there = [(after.root / path).exists() for path in paths]
        assert all(there) or not state.marks, state.why
        if not all(there):
            rest = [n for n, here in enumerate(there) if not here]
            assert after.depot.arrive_small([(records[n], contents[n]) for n in rest]) == [], state.why
            again = after.depot.publish([Publication(records[n], paths[n]) for n in rest])
            assert again.failed == (), state.why


def test_what_was_unlinked_stays_away_and_the_rest_stays(tmp_path: Path) -> None:
    old, new = record_of(OLD), record_of(NEW)

    def prepare(bench: Bench) -> None:
        bench.publish(bench.arrive(OLD, old), "models/a")
        bench.publish(bench.arrive(NEW, new), None)

    bench, recorder = _recorded(tmp_path, prepare)
    assert bench.depot.unlink([bench.manifest.places["models/a"]]) == ()
    recorder.mark("unlinked")
    for state, after in _after(tmp_path, recorder):
        _no_name_lies(after, {"models/a": (OLD,)}, state.why)
        assert not state.marks or not (after.root / "models/a").exists(), state.why
        assert (after.root / bench.store.private_path(new.digest)).read_bytes() == NEW, state.why
