"""Find the user's files: everything below the root that matches a kind and that nobody is writing any more.

Notifications make it fast and scans make it true: inotify sees no mmap writes, nothing another host writes to NFS, and
has limits, so the whole root is read again at an interval whatever the notifications say. Both feed one queue of
candidates; a candidate is reported when the kernel proves that it has no writer or, where it proves nothing, when two
looks `settle_seconds` apart agree. Databases of snapshot kinds are reported on every change instead: whoever takes
the snapshot gets a consistent state from SQLite.

The watcher remembers little: what is already kept is known to the caller (`is_known`), who is asked before each report
and on whom all repeated reports are lost. All callbacks run on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from node.candidates import Candidate, Candidates
from node.liveness import Liveness
from node.patterns import KindPatterns, sidecar_base
from node.scan import Entry, FileSeen, FolderSeen, FolderUnread, Gone, Refused, State, examine, read_folder
from node.stability import FileIdentity, Writer
from node.watches import Change, Notice, Watches
from protocol.names import NameRefused, check_path

log = logging.getLogger(__name__)

BATCH_ENTRIES = 512  # looked at per hop to a thread: some milliseconds there, about one on the loop
FOLDERS_MAX = 200_000  # folders waiting in one scan, about 40 MB of paths; what is beyond waits for a tree less wide
REFUSALS_MAX = 10_000  # paths whose refusal was said once; beyond, refusals are only counted
LOG_MARKS_MAX = 10_000  # databases open for writing at once; beyond, they are reported again at every scan
LIMITED_RESCAN_SECONDS_MAX = 10.0  # between scans where the kernel has no watches left for us
SCAN_SHARE_MAX = 0.2  # of the time goes into scans: a tree that takes long to read is read less often
STOP_SECONDS_MAX = 2.0  # for a batch under way in a thread, which takes milliseconds on a disk that answers
RETRY_SECONDS = 1.0  # after an unexpected failure, so that a failure that repeats does not spin

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True, slots=True)
class Found:
    """A file to accept (or, with `snapshot`, a changed database to take a snapshot of). Made here, read by the agent.

    `live` says that it was written or came here while we watched; False means that it lay here when we first looked,
    so that it must never outrank what the cluster knows.
    """

    kind: str
    path: str  # below the root, with `/`
    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    mode: int  # the permission bits
    live: bool
    snapshot: bool = False

    @property
    def identity(self) -> FileIdentity:
        return FileIdentity(self.device, self.inode, self.size_bytes, self.mtime_ns)


@dataclass(frozen=True, slots=True)
class WatcherFacts:
    """What `status` shows of the watcher."""

    notified: bool  # False: no inotify here, scans only
    limited: bool  # the kernel's limit of watches was reached
    folders_watched: int
    candidates: int  # files seen and not ready yet, most of them still being written
    scans: int
    scan_seconds: float  # of the last complete scan
    refused: int


class Watcher:
    """Watches the globs of each kind below `root`, from `start` to `stop`, both awaited on one event loop.

    `is_known(path, status)` is asked before each report and must answer quickly: true for what is already kept, is
    being accepted, or was published by us. `on_gone(path)` names a file below the root that was deleted or moved
    away, or a folder that was moved away with all that is in it. `on_scanned()` follows each scan of the whole root.
    """

    def __init__(
        self,
        root: Path,
        patterns: Mapping[str, Sequence[str]],
        *,
        rescan_seconds: float,
        settle_seconds: float,
        on_found: Callable[[Found], None],
        on_gone: Callable[[Path], None],
        is_known: Callable[[str, os.stat_result], bool],
        on_scanned: Callable[[], None] = lambda: None,
        snapshot_kinds: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = os.path.realpath(root)
        self._patterns = KindPatterns(patterns)
        self._databases = KindPatterns({kind: patterns[kind] for kind in patterns if kind in snapshot_kinds})
        self._rescan_seconds, self._settle_seconds = rescan_seconds, settle_seconds
        self._on_found, self._on_gone, self._on_scanned = on_found, on_gone, on_scanned
        self._is_known, self._snapshot_kinds, self._clock = is_known, snapshot_kinds, clock
        self._candidates = Candidates(settle_seconds, clock)
        self._liveness = Liveness()
        self._watches = Watches(self._root)
        self._threads = ThreadPoolExecutor(2, "spore-watcher")  # a slow scan and the looks do not wait for each other
        self._running: set[Future[Any]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._log_marks: dict[str, FileIdentity] = {}
        self._reported_seconds: dict[str, float] = {}  # databases, latest last; older than the settling time fall out
        self._refused: set[str] = set()
        self._scans, self._scan_seconds = 0, 0.0
        self._scan_waiters: list[asyncio.Future[None]] = []
        self._scan_wanted = asyncio.Event()

    async def start(self) -> None:
        """Begin to watch, and to read the root for the first time."""
        self._watches.open()
        for step in (self._follow, self._look, self._scan_and_wait):
            self._tasks.append(asyncio.create_task(self._keep_on(step), name=f"watcher {step.__name__}"))

    async def stop(self) -> None:
        """End all work; nothing is called back afterwards. A thread held up by a dead network share is left behind."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._running:
            await asyncio.wait([asyncio.wrap_future(work) for work in list(self._running)], timeout=STOP_SECONDS_MAX)
        self._watches.close()
        for waiter in self._scan_waiters:
            waiter.cancel()

    async def rescan(self) -> None:
        """Read the whole root once more, beginning after this call; returns when that scan is done.

        Files that are still being written, or wait for their second look, are reported when they are ready.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._scan_waiters.append(waiter)
        self._scan_wanted.set()
        await waiter

    def forget_old(self, path: str) -> None:
        """The caller knows this file by now, or it is gone."""
        self._liveness.known(path)

    def watches(self, path: str, kind: str) -> bool:
        """Whether a scan finds a file at this path, as one of this kind."""
        return self._patterns.kind_of(path) == kind

    @property
    def old_files(self) -> list[str]:
        """Files that lay there at the first scan and that the caller did not know yet at the last one."""
        return [path for path in self._liveness.old() if self._databases.kind_of(path) is None]

    @property
    def facts(self) -> WatcherFacts:
        return WatcherFacts(
            notified=self._watches.available,
            limited=self._watches.limited,
            folders_watched=len(self._watches),
            candidates=len(self._candidates),
            scans=self._scans,
            scan_seconds=self._scan_seconds,
            refused=len(self._refused),
        )

    # Events: what the kernel says becomes candidates.

    async def _follow(self) -> None:
        for notice in await self._watches.notices():
            await self._heed(notice)

    async def _heed(self, notice: Notice) -> None:
        path = notice.path
        match notice.change:
            case Change.OVERFLOW:
                log.info("more happened below %s than the kernel could queue; reading all of it again", self._root)
                self._scan_wanted.set()
            case Change.FOLDER_NEW:
                if self._patterns.may_hold(path) and self._nameable(path):
                    await self._read_tree(path, live=True)
            case Change.FOLDER_MOVED:
                self._watches.forget(path)
                if self._patterns.may_hold(path):
                    self._tell(self._on_gone, Path(path))
            case change:
                self._heed_file(change, path)

    def _heed_file(self, change: Change, path: str) -> None:
        base = sidecar_base(path)
        if base is not None and not (path.endswith("-wal") and self._databases.kind_of(base)):
            return  # of a database's own files only the write-ahead log tells of a commit
        kind = self._patterns.kind_of(base or path)
        database = kind in self._snapshot_kinds
        if kind is None or (change is Change.MODIFIED and not database) or not self._nameable(path):
            return
        created = change is Change.CREATED and not database
        self._queue(Candidate(base or path, kind, live=True, created=created), hurry=change is not Change.MODIFIED)

    # Scans: what lies on the disk becomes candidates.

    async def _scan_and_wait(self) -> None:
        waiters, self._scan_waiters = self._scan_waiters, []
        self._scan_wanted.clear()
        try:
            await self._scan()
        except BaseException:
            self._scan_waiters[:0] = waiters  # the next scan answers them, or `stop` does
            raise
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        await self._until_next_scan()

    async def _scan(self) -> None:
        begun_seconds = self._clock()
        try:
            self._liveness.begin_scan(await self._in_thread(os.stat, self._root))
        except OSError as error:
            self._say_once("", f"the root {self._root!r} cannot be read ({error.strerror}); is it mounted?")
            return
        if await self._read_tree("", live=False):
            self._refused.discard("")
            self._liveness.end_scan()
            self._scans += 1
            self._scan_seconds = self._clock() - begun_seconds
            self._tell(self._on_scanned)

    async def _until_next_scan(self) -> None:
        pause_seconds = self._scan_seconds * (1 / SCAN_SHARE_MAX - 1)
        wait_seconds = self._rescan_seconds
        if self._watches.limited:
            wait_seconds = min(wait_seconds, LIMITED_RESCAN_SECONDS_MAX)
        try:
            async with asyncio.timeout(max(wait_seconds, pause_seconds)):
                await self._scan_wanted.wait()
        except TimeoutError:
            return
        if not self._scan_waiters:
            await asyncio.sleep(pause_seconds)  # lost events, not a caller: they must not make us scan without end

    async def _read_tree(self, top: str, *, live: bool) -> bool:
        """Watch and read a folder and all below it; False when the folder itself cannot be read."""
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            self._watches.watch(folder, modifications=self._databases.may_hold(folder))
            entries = read_folder(self._root, folder, self._patterns)
            while batch := await self._in_thread(_next_batch, entries):
                for entry in batch:
                    self._tell(self._enter, entry, waiting, live)
                await self._candidates.room()
                if len(batch) < BATCH_ENTRIES:
                    break
        return top not in self._liveness.unread

    def _enter(self, entry: Entry, waiting: list[str], live: bool) -> None:
        match entry:
            case FileSeen():
                self._consider(entry, live)
            case FolderSeen(path) if len(waiting) < FOLDERS_MAX:
                waiting.append(path)
            case FolderSeen(path):
                self._liveness.folder_unread(path)
                self._say_once(path, f"folder {path[:80]!r} waits: too many folders in one tree; divide the tree")
            case FolderUnread(path, sentence):
                self._liveness.folder_unread(path)
                self._say_once(path, sentence)
            case Refused(path, sentence):
                self._say_once(path, sentence)

    def _consider(self, seen: FileSeen, live: bool) -> None:
        known = self._is_known(seen.path, seen.status)
        if known:
            self._liveness.known(seen.path)
        if not known or seen.kind in self._snapshot_kinds:
            live = live or self._liveness.scanned(seen.path, seen.status, remember=not known)
            self._queue(Candidate(seen.path, seen.kind, live), hurry=False)

    # Looks: candidates become reports.

    def _queue(self, candidate: Candidate, *, hurry: bool) -> None:
        if not self._candidates.add(candidate, hurry=hurry):
            self._scan_wanted.set()

    async def _look(self) -> None:
        batch = await self._candidates.due()
        questions = [(candidate.path, candidate.kind in self._snapshot_kinds) for candidate in batch]
        for candidate, state in zip(batch, await self._in_thread(_examine_all, self._root, questions), strict=True):
            self._tell(self._decide, candidate, state)

    def _decide(self, candidate: Candidate, state: State | Gone | Refused) -> None:
        match state:
            case Gone():
                self._liveness.known(candidate.path)
                self._log_marks.pop(candidate.path, None)
                self._tell(self._on_gone, Path(candidate.path))
            case Refused(path, sentence):
                self._say_once(path, sentence)
            case State() if candidate.kind in self._snapshot_kinds:
                self._decide_database(candidate, state)
            case State(status, Writer.NONE):
                self._report(candidate, status)
            case State() if candidate.created:
                return  # a writer may be at work; its close will be seen, and until then there is nothing to gain
            case State(_, Writer.PRESENT):
                self._candidates.again(candidate)
            case State(status):
                self._compare_looks(candidate, status)

    def _compare_looks(self, candidate: Candidate, status: os.stat_result) -> None:
        """Where the kernel says nothing about writers: ready when size and mtime stood still for the settling time."""
        identity, now_seconds = FileIdentity.of(status), self._clock()
        if candidate.identity != identity:
            candidate = replace(candidate, identity=identity, looked_at_seconds=now_seconds)
        elif now_seconds - candidate.looked_at_seconds >= self._settle_seconds:
            self._report(candidate, status)
            return
        self._candidates.again(candidate)

    def _decide_database(self, candidate: Candidate, state: State) -> None:
        path, mark = candidate.path, state.log_identity
        log_changed = mark is not None and self._log_marks.get(path) != mark
        if not state.status.st_size and mark is None:
            return  # an empty file is not yet a database; its first write is seen
        if not log_changed and self._is_known(path, state.status):
            self._liveness.known(path)
            return
        now_seconds = self._clock()
        if now_seconds - self._reported_seconds.get(path, float("-inf")) < self._settle_seconds:
            self._candidates.again(candidate)  # one report for all changes within the settling time
            return
        self._remember_report(path, mark, now_seconds)
        live = candidate.live and (log_changed or not self._liveness.is_old(path, state.status))
        self._tell(self._on_found, _found(candidate, state.status, live=live, snapshot=True))

    def _remember_report(self, path: str, mark: FileIdentity | None, now_seconds: float) -> None:
        self._reported_seconds.pop(path, None)
        self._reported_seconds[path] = now_seconds
        while now_seconds - next(iter(self._reported_seconds.values())) >= self._settle_seconds:
            del self._reported_seconds[next(iter(self._reported_seconds))]
        self._log_marks.pop(path, None)
        if mark is not None and len(self._log_marks) < LOG_MARKS_MAX:
            self._log_marks[path] = mark

    def _report(self, candidate: Candidate, status: os.stat_result) -> None:
        if self._is_known(candidate.path, status):
            self._liveness.known(candidate.path)
        else:
            live = candidate.live and not self._liveness.is_old(candidate.path, status)
            self._tell(self._on_found, _found(candidate, status, live=live, snapshot=False))

    # What all of it stands on.

    def _nameable(self, path: str) -> bool:
        try:
            check_path(path)
        except NameRefused as refusal:
            self._say_once(path, str(refusal))
            return False
        return True

    def _say_once(self, path: str, sentence: str) -> None:
        if path in self._refused or len(self._refused) >= REFUSALS_MAX:
            return
        self._refused.add(path)
        log.warning("%s", sentence)
        if len(self._refused) == REFUSALS_MAX:
            log.warning("%d paths were refused; further ones are not named here", REFUSALS_MAX)

    def _tell(self, callback: Callable[Arguments, None], *args: Arguments.args, **more: Arguments.kwargs) -> None:
        """Call back; what one file makes fail must not keep the others from being reported."""
        try:
            callback(*args, **more)
        except Exception:
            log.exception("the watcher goes on although %r failed", callback)

    async def _in_thread(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **more: Arguments.kwargs
    ) -> Result:
        future = self._threads.submit(work, *args, **more)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return await asyncio.wrap_future(future)

    async def _keep_on(self, step: Callable[[], Coroutine[None, None, None]]) -> None:
        """Repeat one of the three works for ever; a failure is told and the work goes on."""
        while True:
            try:
                await step()
            except Exception:
                log.exception("the watcher goes on although its step %s failed", step.__name__)
                await asyncio.sleep(RETRY_SECONDS)


def _found(candidate: Candidate, status: os.stat_result, *, live: bool, snapshot: bool) -> Found:
    return Found(
        kind=candidate.kind,
        path=candidate.path,
        device=status.st_dev,
        inode=status.st_ino,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        mode=stat.S_IMODE(status.st_mode),
        live=live,
        snapshot=snapshot,
    )


def _next_batch(entries: Iterator[Entry]) -> list[Entry]:
    return list(islice(entries, BATCH_ENTRIES))


def _examine_all(root: str, questions: Sequence[tuple[str, bool]]) -> list[State | Gone | Refused]:
    return [examine(root, path, database=database) for path, database in questions]
