"""The core's pulls: one run of chunks from one source into staging, a few threads at a time (see protocol/swarm.py).

What belongs to one fetch is kept open from its first pull until the core gives its room back, so that those who fetch
the same artifact can be served from it meanwhile, and nothing is synced for each piece. Every pull is answered once by
`Pulled`, from a thread, unless it was cut.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from node.bulk_client import Avoided, Connection, Connections, Job, Unreached
from node.bulk_store import BulkDepot
from node.bulk_stream import StreamBroken, sentence_of
from node.progress import DISK, LOGGED_BYTES_MIN, Meter, Progress
from node.runs import Lied, RunReader, SourceFailed, require
from protocol.chunks import CHUNK_BYTES, LIST_PAGE_CHUNKS, chunk_count, split_leaves
from protocol.effects import Pull, Report
from protocol.events import Pulled
from protocol.values import DIGEST_BYTES, Digest, NodeId, Record, Stripe
from storage.partials import Partial
from storage.refusals import StoreError, WrongBytes

THREADS = 24  # two swarms at full speed (see ASKS_MAX in protocol/swarm.py); each holds 1 MiB
OnWrongBytes = Callable[[str, Digest, str], None]


@dataclass(slots=True, eq=False)
class _Target:
    """What is open for one fetch."""

    record: Record
    meter: Meter
    lock: threading.Lock = field(default_factory=threading.Lock)  # of the chunk list: it is fetched once
    partial: Partial | None = None
    listed: bool = False  # the chunk list is here, and what it names that lay here already
    readers: list[RunReader] = field(default_factory=list)  # that no thread uses now
    users: int = 0  # pulls under way
    sources: set[str] = field(default_factory=set)  # all that it was ever pulled from
    ended: bool = False


@dataclass(slots=True, eq=False)
class _Task:
    effect: Pull
    target: _Target
    job: Job = field(default_factory=Job)


OnEnded = Callable[[Record, int, tuple[NodeId, ...], bool], None]


class Pulling:
    """Performs `Pull` and `CutPull`; `end` closes what a fetch kept open."""

    def __init__(
        self,
        depot: BulkDepot,
        connections: Connections,
        on_pulled: Callable[[Pulled], None],
        on_wrong_bytes: OnWrongBytes,
        on_report: Callable[[Report], None],
    ) -> None:
        self._depot = depot
        self._connections = connections
        self._on_pulled = on_pulled
        self._on_wrong_bytes = on_wrong_bytes
        self._on_report = on_report
        self.on_ended: OnEnded = lambda record, transfer, sources, whole: None
        self._changed = threading.Condition()
        self._targets: dict[int, _Target] = {}
        self._tasks: dict[int, _Task] = {}
        self._queue: deque[_Task] = deque()  # bounded by the core: a dozen for each fetch
        self._threads = 0
        self._idle = 0
        self._stopping = False

    def pull(self, effect: Pull) -> None:
        """Start it; returns at once."""
        with self._changed:
            if self._stopping:
                return
            meter = Meter(effect.transfer, effect.source, "fetch", effect.record.size)
            target = self._targets.setdefault(effect.transfer, _Target(effect.record, meter))
            target.users += 1
            target.sources.add(effect.source)
            task = self._tasks[effect.number] = _Task(effect, target)
            self._queue.append(task)
            self._changed.notify()
            if self._idle < len(self._queue) and self._threads < THREADS:
                self._threads += 1
                threading.Thread(target=self._work, name="bulk-pull", daemon=True).start()

    def cut(self, number: int) -> None:
        """It is of no use any more."""
        with self._changed:
            task = self._tasks.pop(number, None)
        if task is not None:
            task.job.cancel("it is not needed any more")

    def end(self, transfer: int) -> None:
        """The fetch is over: cut what is under way and close what is open, as soon as no thread uses it."""
        with self._changed:
            target = self._targets.pop(transfer, None)
            tasks = [task for task in self._tasks.values() if task.target is target]
            if target is not None:
                target.ended = True
        for task in tasks:
            self.cut(task.effect.number)
        if target is not None:
            self._tell_end(target)
            self._close_unused(target)

    def _tell_end(self, target: _Target) -> None:
        """How it went: to whom it concerns, and in the log when it was large and is whole."""
        progress = target.meter.read()
        whole = progress.bytes_done >= progress.bytes_total
        self.on_ended(target.record, progress.transfer, tuple(sorted(target.sources)), whole)
        if progress.bytes_done == progress.bytes_total >= LOGGED_BYTES_MIN:
            told = replace(progress, peer=", ".join(sorted(target.sources)))
            self._on_report(Report("info", "transferred", told.sentence(target.record.name)))

    def snapshot(self) -> tuple[Progress, ...]:
        """Each fetch, with those it is pulling from now."""
        with self._changed:
            targets = list(self._targets.values())
            for target in targets:
                sources = {task.effect.source for task in self._tasks.values() if task.target is target}
                target.meter.peer = ", ".join(sorted(sources))
        return tuple(target.meter.read() for target in targets)

    def stop(self, deadline_seconds: float) -> bool:
        """Cut everything and wait for the threads; whether all have ended."""
        with self._changed:
            self._stopping = True
            tasks = list(self._tasks)
            self._changed.notify_all()
        for number in tasks:
            self.cut(number)
        for transfer in list(self._targets):
            self.end(transfer)
        with self._changed:
            return self._changed.wait_for(lambda: not self._threads, deadline_seconds)

    # Threads

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
        effect = task.effect
        answer = Pulled(effect.number, "it failed unexpectedly")
        try:
            answer = self._pull(task)
        except (StoreError, OSError) as problem:
            answer = Pulled(effect.number, sentence_of(problem))
        except Exception as problem:  # a fault of ours fails one pull, is seen, and the agent goes on
            self._on_report(Report("error", "transfer_fault", f"pull {effect.number}: {problem!r}"))
        finally:
            task.target.meter.leave()
            with self._changed:
                wanted = self._tasks.pop(effect.number, None) is not None
                task.target.users -= 1
            self._close_unused(task.target)
            if wanted:
                self._on_pulled(answer)

    def _close_unused(self, target: _Target) -> None:
        with self._changed:
            partial = target.partial if target.ended and not target.users else None
            target.partial = None if partial is not None else target.partial
        if partial is not None:
            while target.readers:
                target.readers.pop().close()
            with suppress(StoreError, OSError):
                partial.close()

    # Work

    def _pull(self, task: _Task) -> Pulled:
        """Over a kept connection, or, when the peer has closed that one meanwhile, over a fresh one."""
        source, number = task.effect.source, task.effect.number
        for fresh in (False, True):
            connection, kept = None, False
            try:
                connection = self._connections.take(source, task.job, fresh)
                missing = self._run(task, connection)
                kept = True
                self._connections.succeeded(source)
                return Pulled(number, missing=missing)
            except (WrongBytes, Lied) as problem:
                self._on_wrong_bytes(source, task.effect.record.digest, sentence_of(problem))
                self._connections.failed(source, sentence_of(problem))
                return Pulled(number, sentence_of(problem), lied=True)
            except SourceFailed as problem:
                kept = True
                self._connections.succeeded(source)
                return Pulled(number, sentence_of(problem))
            except Avoided as problem:
                return Pulled(number, sentence_of(problem), unreached=True)
            except StreamBroken as problem:
                if fresh or connection is None or not connection.reused or task.job.cancelled:
                    if not task.job.cancelled:
                        self._connections.failed(source, sentence_of(problem))
                    return Pulled(number, sentence_of(problem), unreached=isinstance(problem, Unreached))
            finally:
                if connection is not None:
                    (self._connections.give_back if kept else self._connections.drop)(connection, task.job)
        raise AssertionError("a fresh connection returns or raises")

    def _run(self, task: _Task, connection: Connection) -> tuple[Stripe, ...] | None:
        """Bring the chunk list when nobody has yet, then the chunks of the run that are not here. What is missing, told
        once for each fetch, after what lies here under other names was copied."""
        target, run = task.target, task.effect.run
        partial, missing = self._partial(target), None
        if not target.listed:
            with target.lock:
                if not target.listed:
                    missing = self._list(target, connection, partial)
        reader = self._reader(target, partial)
        try:
            for part in partial.lacking(run):
                reader.get(connection, part)
        finally:
            target.readers.append(reader)
        return _without(missing, run) if missing is not None else None

    def _partial(self, target: _Target) -> Partial:
        with target.lock:
            if target.partial is None:
                target.partial = self._depot.partial(target.record)
                target.meter.start()
            return target.partial

    def _list(self, target: _Target, connection: Connection, partial: Partial) -> tuple[Stripe, ...]:
        if not partial.leaves_known:
            _get_leaves(connection, partial)
        target.meter.enter(DISK)
        partial.fill()
        target.listed = True
        missing = partial.missing()
        left = sum(stripe.count for stripe in missing)
        target.meter.bytes_done = max(0, target.record.size - left * CHUNK_BYTES)
        return missing or (Stripe(0, 0),)

    def _reader(self, target: _Target, partial: Partial) -> RunReader:
        """A reader that no other thread uses now; each keeps its buffers for the next piece."""
        with suppress(IndexError):
            return target.readers.pop()
        return RunReader(target.record, partial, self._depot, target.meter, Job(), self._connections.speeds)


def _get_leaves(connection: Connection, partial: Partial) -> None:
    record = partial.record
    total = chunk_count(record.size)
    packed = memoryview(bytearray(total * DIGEST_BYTES))
    for first in range(0, total, LIST_PAGE_CHUNKS):
        count = min(LIST_PAGE_CHUNKS, total - first)
        head = connection.get(f"/v1/chunks/{record.digest.hex()}?from={first}&count={count}", {})
        require(connection, record, head, count * DIGEST_BYTES, None)
        connection.stream.read_into(packed[first * DIGEST_BYTES : (first + count) * DIGEST_BYTES])
    partial.set_leaves(split_leaves(bytes(packed)))


def _without(missing: tuple[Stripe, ...], run: Stripe) -> tuple[Stripe, ...]:
    """What is missing once this run has come too."""
    left: list[Stripe] = []
    for stripe in missing:
        end, run_end = stripe.first + stripe.count, run.first + run.count
        before, after = min(end, run.first) - stripe.first, end - max(stripe.first, run_end)
        left += [Stripe(stripe.first, before)] if before > 0 else []
        left += [Stripe(max(stripe.first, run_end), after)] if after > 0 else []
    return tuple(left) or (Stripe(0, 0),)
