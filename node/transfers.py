"""The core's transfers: `Upload` and `Fetch` effects, performed by a few threads over bulk connections.

Each effect is answered exactly once, from a thread: an upload by `Uploaded`, a fetch by `Arrived` under our own name,
also when it was cancelled or the agent stops. The threads are daemons: a resolver that hangs must not hold up the end
of the process.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from node.breakers import Guards
from node.bulk_client import Avoided, Connections, Job, Unreached
from node.bulk_store import BulkDepot
from node.bulk_stream import Patience, StreamBroken, sentence_of
from node.fetching import Fetching
from node.inbox import asked_bytes
from node.progress import LOGGED_BYTES_MIN, Meter, Progress
from node.pulling import Pulling
from node.throttle import PRIORITY_HEADER, Throttle
from node.tls import IdentityContexts
from node.transports.carrier import Carrier
from node.uploading import Refused, Uploader, begin_push, end_push
from protocol.effects import Fetch, Report, Upload
from protocol.events import Arrived, Pulled, Uploaded
from protocol.values import Digest, NodeId, Parcel

THREADS = 16  # four uploads to each of four peers; each holds 1.3 MiB while it sends
STOPPED = "the agent stops"


@dataclass(frozen=True, slots=True)
class TransferHooks:
    """Whom the transfers tell; all are called from their threads."""

    on_uploaded: Callable[[Uploaded], None]
    on_arrived: Callable[[Arrived], None]
    on_wrong_bytes: Callable[[str, Digest, str], None]  # peer, digest, sentence
    on_report: Callable[[Report], None]
    on_pulled: Callable[[Pulled], None] = lambda pulled: None


@dataclass(slots=True, eq=False)
class _Task:
    effect: Upload | Fetch
    meter: Meter
    job: Job


class Transfers:
    """Performs uploads and fetches. `address_of` gives "host:port", or nothing for a node that cannot be dialled."""

    def __init__(
        self,
        contexts: IdentityContexts,
        depot: BulkDepot,
        throttle: Throttle,
        address_of: Callable[[NodeId], str | None],
        hooks: TransferHooks,
        patience: Patience | None = None,
        threads: int = THREADS,
        guards: Guards | None = None,
    ) -> None:
        self._node = contexts.identity.node
        self._depot = depot
        self._throttle = throttle
        self._hooks = hooks
        self.connections = self._connections = Connections(contexts, address_of, patience or Patience(), guards)
        self.carrier: Carrier | None = None  # none: fetches go over our own protocol alone
        self.pulling = Pulling(depot, self._connections, hooks.on_pulled, hooks.on_wrong_bytes, hooks.on_report)
        self._threads_max = threads
        self._changed = threading.Condition()
        self._queue: deque[_Task] = deque()  # bounded by the core: it has a few transfers under way for each peer
        self._tasks: set[_Task] = set()
        self._threads = 0
        self._idle = 0
        self._stopping = False

    def upload(self, effect: Upload) -> None:
        """Start an upload; returns at once."""
        total = sum(asked_bytes(parcel.record.size, parcel.stripes) for parcel in effect.parcels)
        self._start(_Task(effect, Meter(effect.transfer, effect.peer, "out", total), Job()))

    def fetch(self, effect: Fetch) -> None:
        """Start a fetch of a record whose room is reserved; returns at once."""
        meter = Meter(effect.transfer, ", ".join(effect.sources), "fetch", effect.record.size)
        self._start(_Task(effect, meter, Job()))

    def cancel(self, transfer: int, why: str = "it was cancelled") -> None:
        """End the transfers of this number; each is still answered."""
        with self._changed:
            tasks = [task for task in self._tasks if task.effect.transfer == transfer]
        for task in tasks:
            task.job.cancel(why)

    def snapshot(self) -> tuple[Progress, ...]:
        """What is under way or queued, in order of its number; also a moment to close connections idle for long."""
        self._connections.prune()
        with self._changed:
            tasks = list(self._tasks)
        known = (*(task.meter.read() for task in tasks), *self.pulling.snapshot())
        return tuple(sorted(known, key=lambda p: (p.transfer, p.direction)))

    def bytes_done(self, digest: Digest) -> int:
        """How far the fetch of an artifact is."""
        with self._changed:
            tasks = [t for t in self._tasks if isinstance(t.effect, Fetch) and t.effect.record.digest == digest]
        return sum(task.meter.read().bytes_done for task in tasks)

    def pushing(self, digest: Digest) -> list[NodeId]:
        """The peers to whom an artifact is on its way."""
        with self._changed:
            uploads = [task.effect for task in self._tasks if isinstance(task.effect, Upload)]
        return sorted(u.peer for u in uploads if any(parcel.record.digest == digest for parcel in u.parcels))

    def watch(self) -> None:
        """End what has stalled or is past its deadline; to be called every second or so."""
        with self._changed:
            tasks = list(self._tasks)
        for task in tasks:
            if why := task.meter.read().overdue():
                task.job.cancel(why)
                if isinstance(task.effect, Upload):
                    self._connections.failed(task.effect.peer, why)

    def stop(self, deadline_seconds: float) -> bool:
        """Cut every transfer and wait for their answers; whether all have been given."""
        with self._changed:
            self._stopping = True
            tasks = list(self._tasks)
            self._changed.notify_all()
        for task in tasks:
            task.job.cancel(STOPPED)
        until = time.monotonic() + deadline_seconds
        pulled = self.pulling.stop(deadline_seconds)
        with self._changed:
            done = self._changed.wait_for(lambda: not self._threads, max(0.0, until - time.monotonic()))
        self._connections.close()
        return done and pulled

    # Threads

    def _start(self, task: _Task) -> None:
        with self._changed:
            stopping = self._stopping
            if not stopping:
                self._tasks.add(task)
                self._queue.append(task)
                self._changed.notify()
                if self._idle < len(self._queue) and self._threads < self._threads_max:
                    self._threads += 1
                    threading.Thread(target=self._work, name="bulk-transfer", daemon=True).start()
        if stopping:
            task.job.cancel(STOPPED)
            self._perform(task)

    def _work(self) -> None:
        try:
            while (task := self._next()) is not None:
                self._perform(task)
        finally:
            with self._changed:
                self._threads -= 1
                self._changed.notify_all()

    def _next(self) -> _Task | None:
        with self._changed:
            self._idle += 1
            try:
                while not self._queue and not self._stopping:
                    self._changed.wait()
                return self._queue.popleft() if self._queue else None
            finally:
                self._idle -= 1

    def _perform(self, task: _Task) -> None:
        """Run it and answer, whatever happens."""
        error, unreached = "it failed unexpectedly", False
        task.meter.start()
        try:
            error = self._upload(task, task.effect) if isinstance(task.effect, Upload) else self._fetch(task)
        except StreamBroken as problem:
            error = task.job.why or sentence_of(problem)
            unreached = isinstance(problem, Unreached) and not task.job.cancelled
        except Exception as problem:  # a fault of ours fails one transfer, is seen, and the agent goes on
            error = f"it failed unexpectedly: {problem!r}"
            self._hooks.on_report(Report("error", "transfer_fault", f"transfer {task.effect.transfer}: {problem!r}"))
        finally:
            with self._changed:
                self._tasks.discard(task)
            if not error and task.meter.bytes_total >= LOGGED_BYTES_MIN:
                self._hooks.on_report(Report("info", "transferred", task.meter.read().sentence(_what(task.effect))))
            task.meter.leave()
            self._answer(task.effect, error, unreached)

    def _answer(self, effect: Upload | Fetch, error: str, unreached: bool) -> None:
        if isinstance(effect, Upload):
            self._hooks.on_uploaded(Uploaded(effect.transfer, error, unreached))
        elif error:
            self._hooks.on_arrived(Arrived(self._node, effect.transfer, (), ((effect.record, error),)))
        else:
            self._hooks.on_arrived(Arrived(self._node, effect.transfer, (effect.record,)))

    # Work

    def _fetch(self, task: _Task) -> str:
        assert isinstance(task.effect, Fetch)
        record, sources = task.effect.record, task.effect.sources
        if self.carrier is not None:
            return self.carrier.fetch(task.effect, task.meter, task.job)
        hook = self._hooks.on_wrong_bytes
        headers = {PRIORITY_HEADER: task.effect.priority}
        return Fetching(record, sources, self._depot, self._connections, task.meter, task.job, hook, headers).run()

    def _upload(self, task: _Task, effect: Upload) -> str:
        try:
            refusal = self._push(task, effect)
            self._connections.succeeded(effect.peer)
            return refusal
        except Avoided:
            raise
        except StreamBroken as problem:
            if not task.job.cancelled:
                self._connections.failed(effect.peer, sentence_of(problem))
            raise

    def _push(self, task: _Task, effect: Upload) -> str:
        """Push over a kept connection, or, when the peer has closed that one meanwhile, over a fresh one."""
        allow = self._throttle.pace(
            effect.peer, effect.transfer, effect.priority, [parcel.record.digest for parcel in effect.parcels]
        )
        for fresh in (False, True):
            connection = self._connections.take(effect.peer, task.job, fresh)
            welcome = keep = False
            try:
                begin_push(connection, effect.transfer)
                welcome = True
                uploader = Uploader(
                    self._depot, allow, connection, task.meter, task.job, partial(self._left_out, effect.peer)
                )
                uploader.send(effect.parcels)
                keep = end_push(connection)
                return ""
            except Refused as refusal:
                keep = True
                return str(refusal)
            except StreamBroken:
                if welcome or fresh or not connection.reused:
                    raise
            finally:
                (self._connections.give_back if keep else self._connections.drop)(connection, task.job)
        raise AssertionError("a fresh connection returns or raises")

    def _left_out(self, peer: NodeId, parcel: Parcel, why: str) -> None:
        self._hooks.on_report(
            Report("warning", "parcel_left_out", f"{parcel.record.name} was not sent to {peer}: {why}")
        )


def _what(effect: Upload | Fetch) -> str:
    if isinstance(effect, Fetch):
        return effect.record.name
    first, *others = effect.parcels
    return first.record.name + (f" and {len(others)} others" if others else "")
