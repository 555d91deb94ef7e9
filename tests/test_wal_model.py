"""The write-ahead log against a dictionary, through any order of calls, kills and power losses."""

import errno
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from storage.wal import Wal, WalFull, WalWriteFailed
from tests.recording import CrashState, FailingFiles, RecordingFiles, Survival

BOUNDS = {"segment_bytes": 4096, "size_bytes_max": 40 * 1024, "entries_max": 200}


class LogAgainstDictionary(RuleBasedStateMachine):
    """`synced` must be live after anything; `unsynced` may vanish, `released` may come back, only at a power loss."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.count = 0
        self.synced: dict[int, bytes] = {}
        self.unsynced: dict[int, bytes] = {}
        self.released: dict[int, bytes] = {}
        self.refused: set[bytes] = set()
        self.highest_id = -1
        self.killed: list[Wal] = []  # a kernel closes what a killed process had open; here the teardown does
        self.open_in(Path(self.temporary.name) / "0")

    def teardown(self) -> None:
        self.failing.verbs = set()
        for wal in self.killed:
            with suppress(WalWriteFailed):  # it meets the files of the log that came after it
                wal.close()
        self.wal.close()
        self.temporary.cleanup()

    def open_in(self, folder: Path) -> None:
        self.failing = FailingFiles(verbs=set(), at=10**9, code=errno.EIO)
        self.files = RecordingFiles(folder, inner=self.failing)
        self.wal = Wal.open(folder / "wal", self.files, **BOUNDS)

    @initialize()
    def begin(self) -> None:
        self.append([3])
        self.sync()

    @rule(sizes=st.lists(st.one_of(st.integers(0, 60), st.integers(0, 5000)), min_size=1, max_size=6))
    def append(self, sizes: list[int]) -> None:
        self.count += 1
        payloads = [(b"%d." % (self.count * 10 + at)).ljust(size, b"#") for at, size in enumerate(sizes)]
        try:
            ids = self.wal.append(payloads)
        except WalFull:
            assert not self.wal.room(max(sizes) * len(sizes) + 24 * len(sizes))
            return
        except WalWriteFailed as failure:
            self.refused |= set(payloads)  # a crash may find a part of it, under ids that nobody has seen
            self.lose(failure)
            return
        assert ids == sorted(ids)
        assert ids[0] > self.highest_id
        self.highest_id = ids[-1]
        self.unsynced |= dict(zip(ids, payloads, strict=True))

    @rule()
    def sync(self) -> None:
        try:
            self.wal.sync()
        except WalWriteFailed as failure:
            self.lose(failure)
            return
        self.synced |= self.unsynced
        self.unsynced = {}
        self.released = {}

    @rule(share=st.integers(1, 4), offset=st.integers(0, 3))
    def release(self, share: int, offset: int) -> None:
        known = self.synced | self.unsynced
        ids = sorted(known)[offset::share]
        for entry_id in ids:
            self.released[entry_id] = known[entry_id]
            self.synced.pop(entry_id, None)
            self.unsynced.pop(entry_id, None)
        try:
            self.wal.release(ids)
        except WalWriteFailed as failure:
            self.lose(failure)

    @rule(steps=st.integers(1, 30))
    def compact(self, steps: int) -> None:
        try:
            while steps and self.wal.compact():
                steps -= 1
        except WalWriteFailed as failure:
            self.lose(failure)
        except OSError:
            pass  # a file that could not be removed; the next start removes it

    def lose(self, failure: WalWriteFailed) -> None:
        for entry_id in set(failure.lost_ids) & set(self.unsynced):
            self.released[entry_id] = self.unsynced.pop(entry_id)  # a power loss may bring it back as well

    @rule(
        verb=st.sampled_from(["writev", "fdatasync", "fsync", "fsync_dir", "open", "ftruncate", "unlink"]),
        after=st.integers(1, 4),
        times=st.integers(1, 3),
    )
    def break_the_disk(self, verb: str, after: int, times: int) -> None:
        self.failing.verbs, self.failing.at, self.failing.times = {verb}, after, times
        self.failing.calls = 0

    @rule()
    def restart_well(self) -> None:
        self.failing.verbs = set()
        self.wal.close()
        self.after_restart(self.synced | self.unsynced, exact=True)

    @rule()
    def kill(self) -> None:
        self.failing.verbs = set()
        self.killed.append(self.wal)
        self.after_restart(self.synced | self.unsynced, exact=False)

    @rule(chance=st.sampled_from([0.0, 0.3, 0.7, 1.0]), seed=st.integers(0, 1 << 16))
    def lose_power(self, chance: float, seed: int) -> None:
        self.count += 1
        disk = self.files.initial
        for operation in self.files.journal:
            disk.feed(operation)
        state = CrashState("", disk.crash(Survival(chance, seed)), ())
        folder = state.write_to(Path(self.temporary.name) / str(self.count))
        self.failing.verbs = set()
        self.wal.close()
        self.open_in(folder)
        self.adopt(self.synced, exact=False)

    def after_restart(self, must: dict[int, bytes], exact: bool) -> None:
        self.wal = Wal.open(self.files.root / "wal", self.files, **BOUNDS)
        self.adopt(must, exact)

    def adopt(self, must: dict[int, bytes], exact: bool) -> None:
        live = dict(self.wal.live())
        assert must.items() <= live.items()
        known = self.synced | self.unsynced | self.released
        assert all(live[entry_id] == payload for entry_id, payload in known.items() if entry_id in live)
        assert {payload for entry_id, payload in live.items() if entry_id not in known} <= self.refused
        assert live == must or not exact
        assert self.wal.recovered.missing_segments == 0
        self.synced, self.unsynced, self.released = live, {}, {}
        self.highest_id = max([self.highest_id, *live])

    @invariant()
    def exactly_what_is_not_released_is_live_in_order(self) -> None:
        live = list(self.wal.live())
        assert live == sorted((self.synced | self.unsynced).items())
        usage = self.wal.usage()
        assert usage.live_entries == len(live)
        assert usage.live_bytes == sum(24 + len(payload) for _, payload in live)
        assert self.wal.damaged() == {}

    @precondition(lambda self: self.failing.verbs == set())
    @invariant()
    def the_files_are_those_of_the_account(self) -> None:
        on_disk = list((self.files.root / "wal").glob("*.wal"))
        assert len(on_disk) >= self.wal.usage().segments


LogAgainstDictionary.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLogAgainstDictionary = LogAgainstDictionary.TestCase
