"""The intake: files found below the root become accepted artifacts, live databases become snapshots of them.

The watcher finds, the depot makes safe and hashes (in threads), the core decides. A file that changes while it is
read is looked at again; one that another member of an NFS group has claimed is left to it. Nothing is ever dropped
for its size.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.snapshot import SnapshotError, SnapshotFacts, snapshot_database
from node.watcher import Found, Watcher
from protocol.effects import Answer, Kept, Report
from protocol.events import Event, Put, RootKnown, Withdrawn
from protocol.fleet import Fleet, Kind
from protocol.names import NameRefused, name_of
from protocol.values import Digest, NodeId, Place, Record, State
from storage.acceptance import Accepted
from storage.depot import Depot
from storage.folders import Stamp, stamp_of
from storage.manifest import Manifest
from storage.refusals import ClaimedElsewhere, FileChanging, FileGone, StoreError

WORKERS = 2  # files hashed at once: one per core of the smallest machines in use
RETRY_SECONDS = 1.0  # a file that changed while it was read is looked at again after this
CLAIM_PATIENCE_SECONDS = 120.0  # a claim without a record after two rescans: its claimer died
SNAPSHOT_SHARE_MAX = 0.1  # of the time goes into snapshots of one database: then they are stretched
MISSING_SECONDS = 600.0  # between looks for files that vanished unseen: a stat each
PLACES_PAGE = 500
ELSEWHERE_MAX = 100_000  # as many old files as the watcher remembers; beyond, the core's own limit ends the wait
ROOT_LOOK_SECONDS = 0.5  # between looks whether what lay here is known: a stat for each of a page
WAL_WAIT_SECONDS = 0.2  # the WAL is full: acceptance waits for receipts to release entries


@dataclass(slots=True)
class Database:
    """One watched live database: when it last had a snapshot, and whether it changed since."""

    kind: str
    path: str
    live: bool
    facts: SnapshotFacts | None = None
    digest: Digest = b""  # of the last snapshot
    tried: bool = False
    due_seconds: float = 0.0
    wanted: bool = True


@dataclass(slots=True)
class Intake:
    """Feeds the core with `Put` and `Withdrawn`. All methods run on the event loop."""

    node: NodeId
    root: Path
    fleet: Callable[[], Fleet]
    depot: Depot
    manifest: Manifest
    threads: Executor
    post: Callable[[Event], None]
    report: Callable[[Report], None]
    room: Callable[[], bool]
    request: Callable[[], tuple[int, asyncio.Future[Answer]]]
    watcher: Watcher | None = None
    queue: dict[str, Found] = field(default_factory=dict)
    databases: dict[str, Database] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    watching: asyncio.Lock = field(default_factory=asyncio.Lock)
    stopping: bool = False
    learning: bool = True  # the manifest is new or rebuilt: what lay here before ranks below whatever is known
    root_scanned: bool = False  # the first scan of this life is complete
    elsewhere: dict[str, None] = field(default_factory=dict)  # files of that time which a mate of our store takes in
    missing_due_seconds: float = 0.0

    # --- life ---

    async def start(self) -> None:
        self.learning = not self.manifest.scanned()
        for worker in range(WORKERS):
            self.tasks.append(asyncio.create_task(self._work(), name=f"intake {worker}"))
        self.tasks.append(asyncio.create_task(self._snapshots(), name="snapshots"))
        await self.watch()

    async def watch(self) -> None:
        """(Re)start the watcher with the kinds of the hosts file in force; twice at once means one after the other."""
        async with self.watching:
            await self._watch()

    async def _watch(self) -> None:
        if self.watcher is not None:
            await self.watcher.stop()
        fleet = self.fleet()
        routing = fleet.routing_for(self.node)
        self.watcher = Watcher(
            self.root,
            {kind.name: kind.paths for kind in fleet.kinds if kind.paths},
            rescan_seconds=routing.auto_sync_interval_seconds,
            settle_seconds=routing.settle_seconds,
            on_found=self.found,
            on_gone=self.gone,
            is_known=self.is_known,
            on_scanned=self._scanned,
            snapshot_kinds=frozenset(kind.name for kind in fleet.kinds if kind.snapshot),
        )
        await self.watcher.start()

    async def stop(self) -> None:
        """Stop watching; what is being accepted is finished by the caller's flush or given up with the process."""
        self.stopping = True
        if self.watcher is not None:
            await self.watcher.stop()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()

    def ended(self) -> list[str]:
        """Which of the works begun at the start go on no more; one that is only spawned leaves the list at its end."""
        return [task.get_name() for task in self.tasks if task.done()]

    async def finish(self, until: float) -> None:
        """Before leaving: a last snapshot of what changed, and acceptance of what was found, until a loop time."""
        loop = asyncio.get_running_loop()
        for database in self.databases.values():
            database.wanted = True  # whether it changed is found out by looking, not by waiting for a notice
            database.due_seconds = 0.0
        self.wake.set()
        while (  # noqa: ASYNC110 - three conditions that change in three places; a poll of 20 ms ends with the process
            self.queue or self.running or any(d.wanted for d in self.databases.values())
        ) and loop.time() < until:
            await asyncio.sleep(0.02)

    # --- what the watcher says ---

    def found(self, found: Found) -> None:
        if found.snapshot:
            self._database(found)
        else:
            self.queue[found.path] = found
        self.wake.set()

    def gone(self, path: Path) -> None:
        """A watched file, or a folder with all that was in it, is gone: withdraw, never delete."""
        self.queue.pop(path.as_posix(), None)
        self.databases.pop(path.as_posix(), None)
        self._spawn(self._withdraw_missing(path.as_posix(), seen=True))

    async def _withdraw_missing(self, below: str = "", seen: bool = False) -> None:
        """State that what is not there any more is not held: a path and all below it, or (below nothing) everywhere."""
        place = self.manifest.place(below) if below else None
        if place is not None:
            await self._withdraw_if_missing([place], seen)
        after = f"{below}/" if below else ""
        while page := await self.manifest.queries.places(after, PLACES_PAGE):
            inside = [place for place in page if not below or place.path.startswith(f"{below}/")]
            await self._withdraw_if_missing(inside, seen)
            if len(inside) < len(page):
                return
            after = page[-1].path

    async def _withdraw_if_missing(self, places: list[Place], seen: bool) -> None:
        """`seen`: they went while we watched; what we took away ourselves is no user's deletion."""
        loop = asyncio.get_running_loop()
        missing = await loop.run_in_executor(self.threads, self.depot.missing, places)
        for place in missing:
            by_user = seen and not self.depot.took_away(place.path)
            self.post(Withdrawn(place, f"{place.path} was deleted or moved by a user", removed=by_user))

    def is_known(self, path: str, status: os.stat_result) -> bool:
        """Whether this very file is already kept, or was published by us."""
        return self.depot.knows(path, stamp_of(status))

    def _scanned(self) -> None:
        """The whole root was read: was all that lay there taken in? What is missing is looked for now and then."""
        now = asyncio.get_running_loop().time()
        if self.learning and self._all_taken_in():
            self.learning = False
            self._spawn(self.manifest.set_scanned())
        if not self.root_scanned:
            self.root_scanned = True
            self._spawn(self._until_root_is_known())
        if now >= self.missing_due_seconds:
            self.missing_due_seconds = now + MISSING_SECONDS
            self._spawn(self._withdraw_missing())

    def _all_taken_in(self) -> bool:
        """Whether the manifest knows every file that the first scan found: a later one is then new for certain."""
        assert self.watcher is not None, "it says that it has scanned"
        if self._old_files():
            return False
        return all(found.tried or found.live for found in self.databases.values())

    def _old_files(self) -> list[str]:
        assert self.watcher is not None, "it has scanned"
        return [path for path in self.watcher.old_files if path not in self.elsewhere]

    async def _until_root_is_known(self) -> None:
        """Tell the core once each file that the first scan found has its place; looked for, not waited for till the
        next scan, since the core drops no version before."""
        loop = asyncio.get_running_loop()
        while waiting := self._old_files()[:PLACES_PAGE]:
            known = await loop.run_in_executor(self.threads, self._known_by_now, waiting)
            for path in known:
                self._forget_old(path)
            if not known:
                await asyncio.sleep(ROOT_LOOK_SECONDS)
        self.post(RootKnown())

    def _forget_old(self, path: str) -> None:
        if self.watcher is not None:
            self.watcher.forget_old(path)

    def _known_by_now(self, paths: list[str]) -> list[str]:
        """Those that are kept as they are, or gone."""
        known = []
        for path in paths:
            try:
                if self.is_known(path, os.stat(self.root / path)):
                    known.append(path)
            except FileNotFoundError:
                known.append(path)
            except OSError:
                continue  # it may well be there
        return known

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.append(task)
        task.add_done_callback(lambda ended: self.tasks.remove(ended) if ended in self.tasks else None)

    def _database(self, found: Found) -> None:
        database = self.databases.setdefault(found.path, Database(found.kind, found.path, found.live))
        database.wanted = True
        database.live = database.live or found.live

    # --- files ---

    async def _work(self) -> None:
        while True:
            path = next((path for path in self.queue if path not in self.running), None)
            if path is None:
                self.wake.clear()
                await self.wake.wait()
                continue
            found = self.queue.pop(path)
            self.running.add(path)
            try:
                await self._accept(found)
            except Exception as problem:  # one file that nobody expected must not end the taking in of all others
                self.report(Report("error", "fault", f"{path} was not accepted: {type(problem).__name__}: {problem}"))
                self._again(found, 30 * RETRY_SECONDS)
            finally:
                self.running.discard(path)

    async def _accept(self, found: Found) -> None:
        kind = self.fleet().kind(found.kind)
        if kind is None:
            return
        try:
            name = name_of(kind.name, found.path, self.node, kind.namespace == "node")
            await self._wait_for_room()
            accepted = await self._accept_file(found, kind)
        except FileChanging:
            self._again(found)
        except FileGone:
            pass
        except ClaimedElsewhere as claim:
            if len(self.elsewhere) < ELSEWHERE_MAX:
                self.elsewhere[found.path] = None
            self._again(found, max(RETRY_SECONDS, CLAIM_PATIENCE_SECONDS - claim.age_seconds))
        except (NameRefused, StoreError) as refused:
            self.report(Report("error", "not_accepted", f"{found.path} was not accepted: {refused}"))
            self._again(found, 30 * RETRY_SECONDS)
        else:
            self._put(name, accepted, known=found.live or self._is_new(name, found, accepted))

    def _is_new(self, name: str, found: Found, accepted: Accepted) -> bool:
        """Of a file that nobody saw being written: whether it is a user's new one.

        One with the bytes of an earlier version is that version: a crash between its rename and its commit left it. At
        a path that is not watched no scan tells of such a file before its version is dropped: there none is new.
        """
        if self.learning or self.watcher is None or not self.watcher.watches(found.path, found.kind):
            return False
        return all(known.digest != accepted.digest for known in self.manifest.versions(name))

    async def _accept_file(self, found: Found, kind: Kind) -> Accepted:
        stamp = Stamp(found.device, found.inode, found.size_bytes, found.mtime_ns)
        copy_max = self.fleet().copy_max_bytes(kind, self.node)
        take_over = self._claim_is_orphaned(found)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self.threads,
            lambda: self.depot.accept_file(found.path, stamp, take_over=take_over, copy_max_bytes=copy_max),
        )

    def _claim_is_orphaned(self, found: Found) -> bool:
        """A file that its claimer never made a record of, although it had time: we accept it instead."""
        if time.time() - found.mtime_ns / 1e9 < CLAIM_PATIENCE_SECONDS:
            return False
        kind = self.fleet().kind(found.kind)
        if kind is None or kind.namespace == "node":
            return True
        return not self.manifest.versions(f"{kind.name}/{found.path}")

    def _put(self, name: str, accepted: Accepted, known: bool, meta: tuple[tuple[str, str], ...] = ()) -> None:
        number = 0
        if isinstance(accepted.source, Kept) or self.depot.store.shared:
            number, answer = self.request()
            answer.add_done_callback(lambda answered: self._answered(answered, accepted))
        self.post(
            Put(
                number,
                name,
                accepted.digest,
                accepted.blake3,
                accepted.size,
                accepted.mode,
                accepted.source,
                accepted.place,
                known,
                meta,
            )
        )

    def _answered(self, answered: asyncio.Future[Answer], accepted: Accepted) -> None:
        """A private copy stays pinned until the put was committed or refused; mates wait for the former."""
        if isinstance(accepted.source, Kept):
            self.depot.unpin(accepted.source.place)
        if answered.cancelled():
            return
        if answered.result().error:
            self.report(Report("error", "not_accepted", answered.result().error))
        elif accepted.place is not None and self.depot.store.shared and not self.stopping:
            self._spawn(self._record_claim(accepted.place))

    async def _record_claim(self, place: Place) -> None:
        with contextlib.suppress(StoreError):  # then only the claimer replaces this file
            await asyncio.get_running_loop().run_in_executor(self.threads, self.depot.recorded, place)

    async def _wait_for_room(self) -> None:
        """Back-pressure: while the WAL has no room, files wait on the disk where the user put them."""
        while not self.room() and not self.stopping:  # noqa: ASYNC110 - the WAL's room is no event
            await asyncio.sleep(WAL_WAIT_SECONDS)

    def _again(self, found: Found, seconds: float = RETRY_SECONDS) -> None:
        if not self.stopping:
            asyncio.get_running_loop().call_later(seconds, self._look_again, found)

    def _look_again(self, found: Found) -> None:
        """Take the file as it is now; the watcher reports it anew where somebody still writes to it."""
        if self.stopping or found.path in self.queue:
            return
        with contextlib.suppress(OSError):
            status = os.stat(self.root / found.path)
            if not self.is_known(found.path, status):
                self.queue[found.path] = Found(
                    found.kind,
                    found.path,
                    status.st_dev,
                    status.st_ino,
                    status.st_size,
                    status.st_mtime_ns,
                    status.st_mode & 0o777,
                    found.live,
                )
                self.wake.set()

    def retry(self, record: Record, path: str) -> None:
        """A publication met a local change at this path: accept that first."""
        self._look_again(Found(record.kind, path, 0, 0, 0, 0, 0, live=False))

    # --- live databases ---

    async def _snapshots(self) -> None:
        while True:
            now = asyncio.get_running_loop().time()
            due = [d for d in self.databases.values() if d.wanted and d.due_seconds <= now]
            for database in due:
                await self._snapshot(database)
            await asyncio.sleep(0.1)

    async def _snapshot(self, database: Database) -> None:
        database.wanted = False
        loop = asyncio.get_running_loop()
        started = loop.time()
        self.running.add(database.path)
        try:
            await self._wait_for_room()
            taken = await loop.run_in_executor(self.threads, self._take, database, self._stands(database))
            if taken is not None:
                known = database.live or not self.learning
                self._put(self._name_of(database), taken, known, (("snapshot", "sqlite"),))
        except Exception as problem:  # a database that cannot be copied must not end the snapshots of the others
            known = isinstance(problem, SnapshotError | StoreError | NameRefused)
            why = f"{problem}" if known else f"{type(problem).__name__}: {problem}"
            self.report(Report("warning", "snapshot_failed", f"{database.path}: {why}"))
            database.wanted = True
        finally:
            self.running.discard(database.path)
            database.tried = True
            spent = loop.time() - started
            database.due_seconds = loop.time() + max(self._interval(), spent * (1 / SNAPSHOT_SHARE_MAX - 1))

    def _interval(self) -> float:
        routing = self.fleet().routing_for(self.node)
        return max(routing.auto_sync_interval_seconds, routing.snapshot_seconds_min)

    def _name_of(self, database: Database) -> str:
        kind = self.fleet().kind(database.kind)
        return name_of(database.kind, database.path, self.node, kind is not None and kind.namespace == "node")

    def _stands(self, database: Database) -> bool:
        """Whether the last snapshot became a version (a disk that failed may have lost it), or was deleted since."""
        versions = self.manifest.versions(self._name_of(database))
        deleted = bool(versions) and versions[0].state is not State.LIVE
        return deleted or any(version.digest == database.digest for version in versions)

    def _take(self, database: Database, stands: bool) -> Accepted | None:
        """In a thread: a snapshot into a draft, accepted like any artifact; None when nothing changed."""
        source = self.root / database.path
        if stands and database.facts is not None and database.facts.unchanged_since(source):
            return None
        draft = self.depot.draft()
        database.facts = snapshot_database(source, draft, stop=lambda: self.stopping)
        taken = self.depot.accept_draft(draft)
        database.digest = taken.digest
        return taken
