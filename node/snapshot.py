"""Copy a live SQLite database into an immutable file, through SQLite's backup API, leaving the source as it is.

The source is opened read-only: such a connection never checkpoints, never rolls back and never removes a sidecar, not
even when it is the last to close. How long its writers are held up depends on the journal of the database:

* write-ahead log: one read transaction is held over the whole copy. Writers go on; only the log grows meanwhile.
* rollback journal: a reader blocks every commit, so the copy goes in steps that release the lock in between. SQLite
  starts over when another process wrote in between, for ever if it never pauses; after a few restarts all is copied
  under one lock, which holds the writers up for as long as the disk takes to read the file once.
* write-ahead log, but no log there: the last user closed it. Opening it the ordinary way would leave fresh sidecars
  that belong to the agent's user and may shut out the owner; it is read as an immutable file instead, and the copy
  counts only if the file did not change meanwhile.

POSIX record locks belong to the process: whoever in the agent opens and closes a source while it is being copied drops
the locks of the copy. Nobody but this module opens a live database, and one copy of a source runs at a time.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from node.patterns import SIDECAR_SUFFIXES
from node.stability import FileIdentity, log_identity

PAGES_PER_STEP = 1024  # 4 MiB at the usual page size: some milliseconds of lock, and as often a look at `stop`
BUSY_SECONDS = 10.0  # without any progress; twice the time-out that writers use by default
RESTARTS_MAX = 3  # each costs one reading of the file; a writer that was not quiet for so long will not be soon
STEP_WAIT_SECONDS = 0.05  # SQLite waits so long for a lock before it lets us look at `stop`
CROSSINGS_MAX = 5  # meeting a writer in the same microseconds so often in a row is no accident: the error is real
QUIET_TRIES = 3  # a database that is opened and closed that often is in use, and is read as one in use
TICK_NS = 20_000_000  # kernels stamp files with a clock that ticks every 1 to 10 ms; two writes in one tick look alike
PROGRESS_INSTRUCTIONS = 1000  # of SQLite's machine between looks at `stop`; reading the tree's pages counts as one
HEADER_BYTES = 100
MAGIC = b"SQLite format 3\0"
_BUSY_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
# A reader that may not repair cannot tell a journal or log that is just vanishing from one that a crash left: SQLite
# calls a journal hot that was deleted between two of its questions, and hopes to find out by rolling it back.
_CROSSING_CODES = (
    sqlite3.SQLITE_READONLY_ROLLBACK,
    sqlite3.SQLITE_READONLY_RECOVERY,
    sqlite3.SQLITE_READONLY_CANTINIT,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
)
_sources: set[tuple[int, int]] = set()  # being copied now, by device and inode; the caller's threads bound it
_sources_lock = threading.Lock()


class SnapshotError(Exception):
    """No snapshot was taken; the message is one sentence that says why and what to do. Nothing is left behind."""


class NotADatabaseError(SnapshotError):
    """The source is no SQLite database, or not yet one."""


class SourceBusyError(SnapshotError):
    """Writers kept the source locked, or it is being copied already; later it may work."""


class SourceDamagedError(SnapshotError):
    """The source is corrupt, or was left by a crash in a state that only its own program may repair."""


class SnapshotStoppedError(SnapshotError):
    """The caller's `stop` said so."""


class SnapshotFailedError(SnapshotError):
    """The disk or the permissions do not allow it."""


class _RestartedTooOften(Exception):
    """The stepwise copy of a rollback-journal database does not come to an end."""


@dataclass(frozen=True, slots=True)
class SourceState:
    """What a source looked like before it was copied. `settled` is False when a later write could look the same."""

    database: FileIdentity
    log: FileIdentity | None
    settled: bool


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """One snapshot taken: made by `snapshot_database`, kept by the caller for `unchanged_since`.

    `change_counter` is the source's own (its header, bytes 24 to 27) before the copy; with a write-ahead log it moves
    only at checkpoints. `restarts` counts copies begun anew because of a writer.
    """

    size_bytes: int
    change_counter: int
    seconds: float
    restarts: int
    source: SourceState

    def unchanged_since(self, source: Path) -> bool:
        """Whether the database is certainly what this snapshot holds; costs two stats and opens nothing."""
        try:
            now = _state_of(source)
        except OSError:
            return False
        return self.source.settled and (now.database, now.log) == (self.source.database, self.source.log)


def snapshot_database(
    source: Path,
    destination: Path,
    *,
    pages_per_step: int = PAGES_PER_STEP,
    busy_seconds: float = BUSY_SECONDS,
    stop: Callable[[], bool] = lambda: False,
) -> SnapshotFacts:
    """Copy `source` as of one moment into the new file `destination`, checked and fsynced. Blocks; for a thread.

    The copy is no write-ahead-log database, whatever the source is, so that its readers never create sidecars. Two
    copies of one unchanged source have the same bytes. Raises a SnapshotError; then there is no destination.
    """
    begun_seconds = time.monotonic()
    source = Path(os.path.realpath(source))
    try:
        with _alone(source):
            copy = _Copy(source, destination, pages_per_step, busy_seconds, stop)
            state, change_counter = copy.take()
    except OSError as error:
        raise SnapshotFailedError(
            f"{source} cannot be copied ({error.strerror}); check the disk and its rights"
        ) from error
    seconds = time.monotonic() - begun_seconds
    return SnapshotFacts(destination.stat().st_size, change_counter, seconds, copy.restarts, state)


def quick_check(path: Path, *, stop: Callable[[], bool] = lambda: False) -> str | None:
    """The first thing wrong with a database file nobody writes, or None. Opens nothing but the file itself.

    The file may come from anywhere: no function or view of its schema is trusted, and `stop` ends a check that a
    crafted file makes long. Raises OSError when there is no such file, and SnapshotStoppedError.
    """
    if not path.stat().st_size:
        return "the file is empty"
    try:
        with closing(sqlite3.connect(_uri(path, "mode=ro&immutable=1"), uri=True)) as connection:
            connection.text_factory = lambda text: text.decode(errors="replace")
            connection.set_progress_handler(lambda: int(stop()), PROGRESS_INSTRUCTIONS)
            for setting in ("trusted_schema=OFF", "cell_size_check=ON", "ignore_check_constraints=ON"):
                connection.execute(f"PRAGMA {setting}")
            row = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise SnapshotStoppedError(f"the check of {path} was stopped before its end") from error
        return str(error)
    return None if row == ("ok",) else " ".join(str(row[0]).split())


@dataclass(slots=True)
class _Copy:
    """One copy under way. `held_up_since` is when SQLite last let us go on."""

    source: Path
    destination: Path
    pages_per_step: int
    busy_seconds: float
    stop: Callable[[], bool]
    restarts: int = 0
    remaining_pages: int = sys.maxsize
    held_up_since_seconds: float = 0.0

    def take(self) -> tuple[SourceState, int]:
        """The source's state and change counter from before the copy; the destination is complete when this returns."""
        header = _header(self.source)
        self._create()
        try:
            state = self._copy_at_rest(header) or self._copy_in_use(header)
            self._finish()
        except sqlite3.Error as error:
            self._discard()
            raise _explained(self.source, error) from error
        except BaseException:
            self._discard()
            raise
        return state, int.from_bytes(header[24:28], "big")

    def _copy_at_rest(self, header: bytes) -> SourceState | None:
        """Copy a write-ahead-log database that nobody has open, without opening it the ordinary way."""
        for _ in range(QUIET_TRIES):
            if not _has_log_mode(header) or _log_exists(self.source):
                return None
            state = _state_of(self.source)
            if not state.settled:
                time.sleep(2 * TICK_NS / 1e9)
                continue
            self._backup("mode=ro&immutable=1", held=False)
            if _state_of(self.source).database == state.database and not _log_exists(self.source):
                return state
        return None

    def _copy_in_use(self, header: bytes) -> SourceState:
        state = _state_of(self.source)
        try:
            self._backup("mode=ro", held=_has_log_mode(header))
        except _RestartedTooOften:
            self._backup("mode=ro", held=True)
        return state

    def _backup(self, how: str, *, held: bool) -> None:
        """Copy all pages, trying again where an error may come from a writer that began or ended in that moment."""
        for _ in range(CROSSINGS_MAX):
            try:
                return self._back_up_once(how, held)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode not in _CROSSING_CODES:
                    raise
                self._stepped(True, sqlite3.SQLITE_BUSY, self.remaining_pages, 0)
                time.sleep(STEP_WAIT_SECONDS)
        return self._back_up_once(how, held)

    def _back_up_once(self, how: str, held: bool) -> None:
        """One run of the backup API; `held` keeps one read transaction open, so that no writer can restart it."""
        self.remaining_pages, self.held_up_since_seconds = sys.maxsize, time.monotonic()
        os.truncate(self.destination, 0)  # what an earlier run left unfinished has no journal to be undone from
        with closing(_connect(self.source, how)) as reader, closing(_connect(self.destination, "mode=rw")) as writer:
            reader.execute("PRAGMA query_only=ON")
            for setting in ("locking_mode=EXCLUSIVE", "journal_mode=OFF", "synchronous=OFF"):
                writer.execute(f"PRAGMA {setting}").fetchall()  # a copy that fails is thrown away; we fsync at the end
            if held:
                self._hold(reader)
            step = partial(self._stepped, held)
            reader.backup(writer, pages=self.pages_per_step, progress=step, sleep=STEP_WAIT_SECONDS)
            writer.execute("PRAGMA journal_mode=DELETE").fetchall()

    def _hold(self, reader: sqlite3.Connection) -> None:
        while True:
            try:
                reader.execute("BEGIN")
                reader.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()  # BEGIN alone takes no lock yet
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in _BUSY_CODES:
                    raise
                reader.execute("ROLLBACK")
                self._stepped(True, error.sqlite_errorcode, self.remaining_pages, 0)
                time.sleep(STEP_WAIT_SECONDS)

    def _stepped(self, held: bool, code: int, remaining_pages: int, _total_pages: int) -> None:
        """Called by SQLite after each step; raising ends the copy."""
        if self.stop():
            raise SnapshotStoppedError(f"the snapshot of {self.source} was stopped before its end")
        now_seconds = time.monotonic()
        if code & 0xFF in _BUSY_CODES:
            if now_seconds - self.held_up_since_seconds > self.busy_seconds:
                why = f"was locked by its writers for {self.busy_seconds:g} s"
                raise SourceBusyError(f"{self.source} {why}; shorten their transactions, or try again later")
            return
        self.held_up_since_seconds = now_seconds
        if remaining_pages >= self.remaining_pages:
            self.restarts += 1
            if self.restarts > RESTARTS_MAX and not held:
                raise _RestartedTooOften
        self.remaining_pages = remaining_pages

    def _create(self) -> None:
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open(self.destination, flags, 0o600))  # private until it is published
        except FileExistsError as error:
            why = f"the snapshot's destination {self.destination} exists already; name a new file"
            raise SnapshotFailedError(why) from error

    def _finish(self) -> None:
        problem = quick_check(self.destination, stop=self.stop)
        if problem is not None:
            raise SourceDamagedError(f"{self.source} is damaged ({problem}); restore it from an earlier version")
        for path in (self.destination, self.destination.parent):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _discard(self) -> None:
        for suffix in ("", *SIDECAR_SUFFIXES):  # of the destination, which is ours alone
            Path(f"{self.destination}{suffix}").unlink(missing_ok=True)


@contextmanager
def _alone(source: Path) -> Iterator[None]:
    """One copy of a source at a time in this process, whatever name it is given by."""
    status = os.stat(source)
    identity = (status.st_dev, status.st_ino)
    with _sources_lock:
        if identity in _sources:
            raise SourceBusyError(f"{source} is being copied already; wait for that snapshot")
        _sources.add(identity)
    try:
        yield
    finally:
        with _sources_lock:
            _sources.discard(identity)


def _header(source: Path) -> bytes:
    """The first bytes of the source. Closing this descriptor drops the process's locks, hence never during a copy."""
    descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        header = os.pread(descriptor, HEADER_BYTES, 0) if stat.S_ISREG(status.st_mode) else b""
    finally:
        os.close(descriptor)
    if stat.S_ISREG(status.st_mode) and not status.st_size:
        raise NotADatabaseError(f"{source} is empty and not yet a database; it is copied once something is written")
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        raise NotADatabaseError(f"{source} is not a SQLite database; choose another kind for it, without snapshots")
    return header


def _has_log_mode(header: bytes) -> bool:
    return header[18] == 2 or header[19] == 2  # the file format's write and read versions


def _log_exists(source: Path) -> bool:
    return os.path.lexists(f"{source}-wal")


def _state_of(source: Path) -> SourceState:
    path = os.path.realpath(source)
    status = os.stat(path)
    log = log_identity(path)
    latest_ns = max(status.st_mtime_ns, log.mtime_ns if log is not None else 0)
    return SourceState(FileIdentity.of(status), log, settled=latest_ns + TICK_NS < time.time_ns())


def _connect(path: Path, how: str) -> sqlite3.Connection:
    return sqlite3.connect(_uri(path, how), uri=True, isolation_level=None, timeout=STEP_WAIT_SECONDS)


def _uri(path: Path, how: str) -> str:
    """A URI in which no character of the path means anything to SQLite."""
    return f"file://{quote(os.fsencode(os.path.abspath(path)))}?{how}"


def _explained(source: Path, error: sqlite3.Error) -> SnapshotError:
    """SQLite's error as one sentence of ours."""
    code, name = getattr(error, "sqlite_errorcode", 0), getattr(error, "sqlite_errorname", "unknown")
    if code & 0xFF in _BUSY_CODES:
        return SourceBusyError(f"{source} is locked by its writers; try again later")
    if code & 0xFF == sqlite3.SQLITE_NOTADB:
        return NotADatabaseError(f"{source} is not a SQLite database; choose another kind for it, without snapshots")
    if code & 0xFF == sqlite3.SQLITE_CORRUPT:
        return SourceDamagedError(f"{source} is damaged ({error}); restore it from an earlier version")
    if code == sqlite3.SQLITE_READONLY_ROLLBACK:
        why = "was left in the middle of a transaction by a crash; open it once with the program that writes it"
        return SourceDamagedError(f"{source} {why}")
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return SnapshotFailedError(
            f"there is no room for a snapshot of {source}; free disk space in the staging folder"
        )
    return SnapshotFailedError(f"{source} cannot be copied ({error}, {name}); check the disk and its rights")
