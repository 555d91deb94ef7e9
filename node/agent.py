"""The agent: one node, composed. It turns the world into events for the core and performs the core's effects.

Everything here runs on the event loop and blocks never: disks are reached through executors, bulk bytes through
threads of their own. `post` is the only way to the core; effects are performed in the order given, each by one short
method of `_perform`'s table.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import SystemRandom
from typing import Any, TypeVar

from node import upkeep
from node.breakers import Guards
from node.bulk import BulkServer, Hooks
from node.carriage import Carriage
from node.commits import GroupCommitter
from node.external import External
from node.identity import Identity
from node.intake import Intake
from node.issuing import issuer_of, join_server_of
from node.journal import Journal
from node.limits import Limits
from node.listener import Listener
from node.metrics import Metrics
from node.metrics_port import MetricsPort
from node.notices.detection import detect
from node.own_host import on_this_machine
from node.pending import PendingEntries
from node.performer import Performer
from node.refusals import RefusalLog
from node.renewal import RenewalFailed, renew_certificate
from node.scrubber import Scrubber
from node.sessions import Sessions
from node.snapshot import quick_check
from node.tls import IdentityContexts
from node.tokens import TokenBook
from node.transfers import TransferHooks, Transfers
from node.web import Web
from protocol import effects as f
from protocol import events as e
from protocol.effects import Report
from protocol.fleet import RESERVED_KIND, Fleet, split_address
from protocol.names import OWN_FOLDER
from protocol.replica import Replica
from protocol.values import NodeId, Place
from storage.depot import Depot
from storage.entries import EntryUnreadable, decode_entry
from storage.files import FileLayer
from storage.manifest import Manifest
from storage.manifest_file import REBUILT
from storage.marks import others
from storage.mounts import network_file_system
from storage.places import Lookups
from storage.room import Room, RoomLimits, disk_usage
from storage.store import open_store
from storage.wal import Wal

DISK_THREADS = 4  # publishing, reserving and accepting at once; they wait for the disk, not for a core
TICK_SECONDS_MAX = 60.0  # the core ticks each second; a minute without one is a hang, not a busy machine
EXIT_SHARE, EXIT_SECONDS_MIN, EXIT_SECONDS_MAX = 0.1, 0.3, 1.0  # of a last flush, to sync, report and end
STOP_SECONDS = 2.0  # for threads and connections to end after the last flush

T = TypeVar("T")
ReportSink = Callable[[Report], None]


class Agent:
    """One running node. `start`, then `leave` (or cancel), then `stop`."""

    def __init__(
        self, directory: Path, identity: Identity, fleet: Fleet, env: Mapping[str, str], report: ReportSink
    ) -> None:
        self.directory = directory
        self.node = identity.node
        self.env = env
        self.machine = detect(env)
        self._told = fleet  # as the hosts file has it
        self.fleet = on_this_machine(fleet, self.node, env, self.machine)
        self.loop = asyncio.get_running_loop()
        self.journal = Journal(report)
        self.report = self.journal.report
        self.token_book: TokenBook  # of an issuer
        self.started = time.monotonic()
        self._wall_ms = time.time_ns() // 1_000_000 - int(self.started * 1000)
        self.revocations: dict[str, int] = {}
        self.contexts = IdentityContexts(identity, clock=time.time, revocations=self.revocations)
        self.refusals = RefusalLog(self.report_from_thread, clock=time.monotonic)
        self.threads = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="disk")
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="wal")
        self.guards = Guards()
        self.damaged = 0  # files set aside in this life
        self.metrics = Metrics()
        self.metrics_port = MetricsPort(self.render_metrics, self.report)
        self.exit_report: f.Exit | None = None
        self.exited = asyncio.Event()
        self._events: deque[e.Event] = deque()
        self._handling = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self.answers: dict[int, asyncio.Future[f.Answer]] = {}
        self._dead: list[str] = []  # tasks that should run for ever and do not
        self.ticked = self.started
        self.performer = Performer(self)
        self._requests = 0
        self.limits = Limits(self)
        self.external = External(self)

    # --- life ---

    async def start(self) -> None:
        """Recover, listen, watch. Raises the one-sentence errors of the layers below; call `stop` after those too."""
        await self._open_storage()
        self._make_core()
        state = await self.in_thread(self.room.state)
        self.post(e.Boot(self._recovered, self.manifest.last_hlc()))
        upkeep.tell_room(self, state)  # before the first hello: a node that says it accepts nothing is passed over
        await self._open_network()
        self.spawn(self.committer.run(), for_ever="the group committer")
        self.scrubber = Scrubber(self)
        self.spawn(self.scrubber.run(), for_ever="the scrubber")
        for work in upkeep.FOR_EVER:
            self.spawn(work(self), for_ever=f"upkeep: {work.__name__}")
        await self.intake.start()

    async def _open_storage(self) -> None:
        files = FileLayer()
        host = self.fleet.host(self.node)
        routing = self.fleet.routing_for(self.node)
        root = Path(host.root) if host.root else self.directory / "files"
        root.mkdir(parents=True, exist_ok=True)
        shared = bool(self.fleet.nfs_members(self.node)) or await self.in_thread(self._seems_shared, root, files)
        self.manifest = await Manifest.open(self.directory / "manifest.db", cluster=self.fleet.cluster, node=self.node)
        self.store = await self.in_thread(open_store, root, self.node, files, shared)
        size_max = max(routing.wal_bytes_max, 4 * (1 << 20))
        segment = min(64 << 20, size_max // 4)
        self.wal = await self.in_thread(
            lambda: Wal.open(self.directory / "wal", files, segment_bytes=segment, size_bytes_max=size_max)
        )
        self.pending = PendingEntries(self.wal)
        self._recovered = await self.in_thread(self._recover)
        self.held_bytes = await self.manifest.queries.held_for_others(self.node)
        self.room = Room(RoomLimits.of(routing), lambda: disk_usage(files, root), lambda: self.held_bytes)
        self.depot = Depot(
            self.store,
            self.room,
            Lookups(
                self.manifest.shelf.places,
                self.manifest.shelf.place,
                self.pending.content,
                self.manifest.shelf.load_leaves,
                self.manifest.shelf.save_leaves,
                self.pending.recent,
                self.manifest.shelf.digests_of,
                self.manifest.shelf.chunk_lists,
            ),
            files=files,
            copy_max_bytes=routing.copy_max_bytes,
            staging_bytes_max=routing.staging_bytes_max,
            quick_check=quick_check,
            on_withdrawn=self._withdrawn_from_thread,
            on_damaged=self._damaged_from_thread,
        )
        self._recovered = await self.in_thread(self.depot.followed, self._recovered)
        freed = await self.in_thread(self.depot.sweep, True, self._paths_to_keep())
        if freed:
            self.report(Report("info", "staging_swept", f"{freed} bytes of old transfers were removed from staging"))

    def _seems_shared(self, root: Path, files: FileLayer) -> bool:
        """Where it is mounted from is a hint, and so are marks of others: claims cost little where nobody shares."""
        return network_file_system(root) is not None or bool(others(files, root / OWN_FOLDER, self.node))

    def _recover(self) -> tuple[f.Entry, ...]:
        """Entries of the WAL that an earlier life did not release; what cannot be read stays where it is, reported."""
        for sentence in self.wal.recovered.reports:
            self.report(Report("warning", "wal_recovered", sentence))
        entries = []
        unreadable = 0
        for entry_id, payload in self.wal.live():
            try:
                entry = decode_entry(payload)
            except EntryUnreadable as problem:
                unreadable += 1
                self.report(Report("error", "wal_entry_unreadable", str(problem)))
                continue
            self.pending.add(entry, entry_id)
            entries.append(entry)
        self._recovered_all = not unreadable and not self.wal.damaged()
        return tuple(entries)

    def _paths_to_keep(self) -> frozenset[str] | None:
        """Where the bytes of recovered entries lie; None when private files nobody names may still be somebody's."""
        if not self._recovered_all or self.manifest.fact(REBUILT):
            return None
        return frozenset(entry.source.place.path for entry in self._recovered if not isinstance(entry.source, f.Inline))

    def _make_core(self) -> None:
        self.replica = Replica(
            self.node, self.store.uuid, self.fleet, self.manifest, SystemRandom(), boot=self.manifest.boot
        )
        self.committer = GroupCommitter(self.wal, self.pending, self.manifest, self.writer, self.post)
        self.committer.on_poison = lambda sentence: self.report(  # type: ignore[method-assign]  # a hook
            Report("error", "row_quarantined", sentence)
        )
        self.intake = Intake(
            self.node,
            self.store.root,
            lambda: self.fleet,
            self.depot,
            self.manifest,
            self.threads,
            self.post,
            self.report,
            self.committer.room,
            self.request,
        )

    async def _open_network(self) -> None:
        self.throttle, post = self.limits.throttle(), self._post_from_thread
        self.bulk = BulkServer(
            self.contexts,
            self.depot,
            self.throttle,
            Hooks(post, self.told_wrong_bytes, self.report_from_thread, self.refusals.refused),
        )
        self.transfers = Transfers(
            self.contexts,
            self.depot,
            self.throttle,
            self.address_of,
            TransferHooks(post, post, self.told_wrong_bytes, self.report_from_thread, post),
            guards=self.guards,
        )
        self.carriage = Carriage(self, self.transfers.connections)
        self.transfers.carrier, self.bulk.desk = self.carriage.carrier, self.carriage.desk
        self.sessions = Sessions(
            self.node,
            self.contexts,
            hello=self.replica.hello,
            on_event=self.post,
            report=self.report,
            refusals=self.refusals,
        )
        issuer = issuer_of(self)
        self.web = Web(
            self.contexts,
            self.depot,
            session=self.sessions.accept,
            metrics=self.render_metrics,
            renew=issuer.renew if issuer else None,
            report=self.report,
            refusals=self.refusals,
            pace=self.throttle.pace,
        )
        self.joins = join_server_of(self, issuer) if issuer else None
        await self.web.start()
        if self.joins is not None:
            await self.joins.start()
        self.listener = Listener(
            self.contexts,
            web=self.web.protocol,
            join=self.joins.protocol if self.joins else None,
            bulk_handler=self.bulk.serve,
            report=self.report,
            refusals=self.refusals,
        )
        await self.load_revocations()
        await self.sessions.start()
        host, port = split_address(self.fleet.host(self.node).listen_address)
        await self.listener.start(host, port)
        if shown := self.fleet.routing_for(self.node).metrics_port:
            await self.metrics_port.start(shown)

    async def leave(self, seconds: float) -> f.Exit:
        """The final flush: push what is at risk by the plan, take in what was found, say goodbye. Returns within the
        deadline, less what syncing and ending take."""
        margin = min(EXIT_SECONDS_MAX, max(EXIT_SECONDS_MIN, seconds * EXIT_SHARE))
        deadline = self.loop.time() + max(0.0, seconds - margin)
        deadline_ms = self.now_ms() + int(max(0.0, seconds - margin) * 1000)
        self.post(e.Notice(deadline_ms, ""))
        await self.intake.finish(self.loop.time() + seconds * 0.3)
        self.post(e.Flush(0, deadline_ms, leave=True))
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, deadline - self.loop.time()) + margin / 2):
                await self.exited.wait()
        unsafe = tuple(debt.record for debt in self.replica.debts.own_open())
        return self.exit_report or f.Exit(unsafe)

    async def stop(self) -> None:
        """Close everything in the opposite order of `start`; safe after a start that failed half-way."""
        if hasattr(self, "intake"):
            await self.intake.stop()
        if hasattr(self, "sessions"):
            await self.sessions.stop()
        if hasattr(self, "transfers"):
            self.throttle.close()
            await asyncio.gather(
                asyncio.to_thread(self.transfers.stop, STOP_SECONDS), asyncio.to_thread(self.bulk.stop, STOP_SECONDS)
            )
        if hasattr(self, "listener"):
            await self.listener.stop()
            if self.joins is not None:
                await self.joins.stop()
            await self.web.stop()
        await self.metrics_port.stop()
        self.performer.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.threads.shutdown(wait=True, cancel_futures=True)
        self.writer.shutdown(wait=True)
        if hasattr(self, "depot"):
            self.depot.close()
        if hasattr(self, "wal"):
            self.wal.close()
        if hasattr(self, "manifest"):
            await self.manifest.close()

    # --- the core ---

    def now_ms(self) -> int:
        """Milliseconds since 1970 as of the start, then steady: a wall clock that jumps moves no deadline of ours."""
        return self._wall_ms + int(time.monotonic() * 1000)

    def post(self, event: e.Event) -> None:
        """Give the core an event and perform what follows. Events that follow from effects wait their turn."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                self._handle(self._events.popleft())
        finally:
            self._handling = False

    def _handle(self, event: e.Event) -> None:
        """A fault in one event, or in performing one effect, is reported; the others still happen."""
        if isinstance(event, e.SessionUp):
            self.guards.heard(event.peer)
        try:
            effects = self.replica.handle(event, self.now_ms())
        except Exception as problem:
            self._fault(f"the core failed at {type(event).__name__}", problem)
            return
        if isinstance(event, e.Timer):
            self.ticked = time.monotonic()
        for effect in effects:
            try:
                self.performer.perform(effect)
            except Exception as problem:
                self._fault(f"the effect {type(effect).__name__} was not performed", problem)

    def _fault(self, what: str, problem: BaseException) -> None:
        self.report(Report("error", "fault", f"{what}: {type(problem).__name__}: {problem}"))

    def healthy(self) -> bool:
        """What the watchdog asks: the loop turns, the core ticks, groups are committed, files are taken in."""
        return time.monotonic() - self.ticked < TICK_SECONDS_MAX and not self.not_running()

    def not_running(self) -> list[str]:
        """Works that go on for as long as the agent does, and have ended: what nobody would notice for days."""
        return [*self._dead, *self.intake.ended(), *self.sessions.ended(), *self.listener.ended()]

    def _post_from_thread(self, event: e.Event) -> None:
        with suppress(RuntimeError):  # the loop has closed: the agent is gone
            self.loop.call_soon_threadsafe(self.post, event)

    def report_from_thread(self, report: Report) -> None:
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.report, report)

    def request(self) -> tuple[int, asyncio.Future[f.Answer]]:
        """A new request number, and the future that its `Answer` resolves."""
        self._requests += 1
        future: asyncio.Future[f.Answer] = self.loop.create_future()
        self.answers[self._requests] = future
        return self._requests, future

    def forget(self, request: int) -> None:
        """Whoever asked is gone."""
        if self.answers.pop(request, None) is not None:
            self.post(e.Cancel(request))

    # --- what threads tell ---

    def _withdrawn_from_thread(self, place: Place, why: str) -> None:
        self._post_from_thread(e.Withdrawn(place, why))

    def _damaged_from_thread(self, place: Place, why: str) -> None:
        self.damaged += 1
        self.report_from_thread(Report("error", "damaged", why))
        self._post_from_thread(e.Withdrawn(place, why, damaged=True))

    def told_wrong_bytes(self, peer: str, digest: bytes, sentence: str) -> None:
        self.report_from_thread(Report("error", "wrong_bytes", f"{peer}: {sentence} ({digest.hex()[:12]})"))

    def address_of(self, peer: NodeId) -> str | None:
        """Where a peer can be dialled: what it says of itself now, else the hosts file."""
        member = self.replica.members.alive.get(peer)
        return (member.address if member else "") or self.fleet.host(peer).dial_address

    # --- what changes while it runs ---

    async def renew(self) -> str:
        """Renew our certificate from any issuer; "" or why it was not renewed. Connections go on with the old one."""
        issuers = [(name, host.dial_address) for name, host in sorted(self.fleet.hosts.items()) if host.issuer]
        known = [(name, address) for name, address in issuers if address and name != self.node]
        try:
            identity = await self.in_thread(lambda: renew_certificate(self.contexts, known, now=time.time()))
        except RenewalFailed as problem:
            self.report(Report("error", "not_renewed", str(problem)))
            return str(problem)
        self.report(Report("info", "renewed", f"the certificate was renewed: {identity.facts}"))
        return ""

    async def load_revocations(self) -> None:
        """Revocations are replicated records under our own kind; TLS reads this mapping at every handshake."""
        prefix = f"{RESERVED_KIND}/revoked/"
        for listed in await self.manifest.queries.list_artifacts(prefix + "*"):
            since = dict(listed.record.meta).get("since")
            if isinstance(since, int):
                self.revocations[listed.record.name.removeprefix(prefix)] = since
        if hasattr(self, "sessions"):
            self.sessions.recheck()

    def change_fleet(self, fleet: Fleet) -> None:
        """A new hosts file is in force: limits, kinds and peers follow without a restart."""
        self._told = fleet
        self.fleet = on_this_machine(fleet, self.node, self.env, self.machine)
        routing = self.fleet.routing_for(self.node)
        self.room.set_limits(RoomLimits.of(routing))
        self.limits.apply()
        self.post(e.FleetChanged(self.fleet))
        self.spawn(self.intake.watch())

    def found_spot(self, why: str) -> None:
        """The provider calls this machine a spot one; what the hosts file states for this node itself goes before."""
        if not self.machine.ephemeral:
            self.machine = replace(self.machine, ephemeral=why)
            self.change_fleet(self._told)

    def render_metrics(self) -> bytes:
        return self.metrics.render(self)

    # --- helpers ---

    async def in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await self.loop.run_in_executor(self.threads, lambda: function(*arguments))

    def spawn(self, work: Coroutine[Any, Any, object], for_ever: str = "") -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, for_ever))

    def _ended(self, task: asyncio.Task[Any], for_ever: str) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        problem = task.exception()
        if problem is not None:
            self._fault(f"{for_ever or 'a task of the agent'} failed", problem)
        if for_ever:
            self._dead.append(for_ever)
