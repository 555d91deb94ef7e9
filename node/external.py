"""Scheduled copies outside the fleet: when they are due, whether this node makes them, and what is told of them.

`protocol.external` decides who; `node.external_copy` does it.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

from node.bulk_client import Job
from node.bulk_stream import StreamBroken, sentence_of
from node.door import Facts
from node.external_copy import ExternalCopy, Item, Outcome, missing_programs, remote_name
from node.schedules import last_due, next_due
from node.transports.programs import ProgramFailed
from node.transports.ssh import Reach, reach
from protocol import events as e
from protocol.effects import Report
from protocol.external import DONE, FAILED, RUNNING, Attempt, attempt_of, key_of, record_name, runner
from protocol.fleet import RESERVED_KIND, ExternalStorage, Host
from protocol.values import NodeId, Record
from storage.refusals import StoreError

if TYPE_CHECKING:
    from node.agent import Agent

LOOK_SECONDS = 5.0  # between looks whether something is due: schedules are in minutes
SETTLED_INTERVALS = 2  # of gossip after the start: what the others have done is heard of by then
TELL_SECONDS = 60.0  # a running attempt says so this often
PAGE = 1_000
EGRESS_SHARE = 2  # a run takes at most one part in two of this node's egress


class External:
    """The scheduled copies of one running agent."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.job: Job | None = None

    @property
    def storages(self) -> tuple[ExternalStorage, ...]:
        return self.agent.fleet.routing_for(self.agent.node).allowed_external_storage

    async def run_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for storage in self.storages:
                await self._look_at(storage)

    # --- who and when ---

    async def _look_at(self, storage: ExternalStorage) -> None:
        settled_seconds = SETTLED_INTERVALS * self.agent.fleet.routing.gossip_interval_seconds
        if time.monotonic() - self.agent.started < settled_seconds:
            return
        occurrence = last_due(storage.schedule, time.time())
        if self.runner(storage, occurrence) == self.agent.node:
            await self._run(storage, occurrence)

    def runner(self, storage: ExternalStorage, occurrence: int) -> NodeId | None:
        return runner(key_of(storage), occurrence, int(time.time()), self.eligible(storage), self.attempts(storage))

    def eligible(self, storage: ExternalStorage) -> list[NodeId]:
        """Nodes that are there, are not excluded, last (if any does), and may use this storage."""
        agent = self.agent
        members = [*agent.replica.members.alive.values(), agent.replica.members.own]
        able = [m for m in members if not m.excluded and storage in _storages_of(agent, m.node)]
        lasting = [member for member in able if not member.ephemeral]
        return sorted(member.node for member in lasting or able)

    def attempts(self, storage: ExternalStorage) -> list[Attempt]:
        """What each node says of its own."""
        names = [record_name(key_of(storage), node) for node in self.eligible(storage)]
        newest = [versions[0] for name in names if (versions := self.agent.manifest.versions(name))]
        return [attempt for record in newest if (attempt := attempt_of(record)) is not None]

    # --- a run ---

    async def _run(self, storage: ExternalStorage, occurrence: int) -> None:
        self.agent.report(Report("info", "external_started", f"copies to {storage.host}:{storage.path} begin"))
        outcome, left = Outcome(), 0
        await self._tell(storage, Attempt(self.agent.node, occurrence, RUNNING, int(time.time())))
        telling = asyncio.create_task(self._go_on_telling(storage, occurrence, outcome))
        try:
            why, left = await self._copy_all(storage, outcome)
        finally:
            telling.cancel()
            if self.job is not None:
                self.job.cancel("it has ended")  # a thread that still works, when the agent stops, ends soon
            self.job = None
        state = FAILED if why else DONE
        ended = Attempt(
            *(self.agent.node, occurrence, state, int(time.time())), outcome.files, outcome.size_bytes, left, why
        )
        await self._tell(storage, ended)
        said = f"copies to {storage.host}:{storage.path}: {outcome.files} files sent and verified, {left} left"
        self.agent.report(Report("error" if why else "info", f"external_{state}", f"{said}{'; ' if why else ''}{why}"))

    async def _copy_all(self, storage: ExternalStorage, outcome: Outcome) -> tuple[str, int]:
        """Why it ended early ("" when it did not), and how many artifacts could not be sent."""
        why = missing_programs()
        if why:
            return why, 0
        self.job = job = Job()
        limit = self.agent.fleet.egress_bytes_per_second(self.agent.node, self.agent.env)
        try:
            way = self._reach(storage)
            copy = ExternalCopy(way, storage.path, job, limit // EGRESS_SHARE if limit else None)
            verified = await asyncio.to_thread(copy.verified)
            wanted = [record for record in await self._records() if remote_name(record) not in verified]
            return "", await self._copy(copy, wanted, outcome)
        except (ProgramFailed, StreamBroken, StoreError, OSError, ValueError) as problem:
            return sentence_of(problem), 0

    async def _copy(self, copy: ExternalCopy, wanted: list[Record], outcome: Outcome) -> int:
        """Those that lie here first, many at once; the others are fetched, sent and forgotten one by one."""
        here = [Item(record, path) for record in wanted if (path := await self._path(record)) is not None]
        sent = await asyncio.to_thread(copy.send, here, lambda so_far: _follow(outcome, so_far))
        base = Outcome(outcome.files, outcome.size_bytes)
        left = len(sent.failed)
        ours = {item.record.key for item in here}
        for record in wanted:
            if record.key not in ours:
                one = await self._fetch_and_send(copy, record)
                outcome.files, outcome.size_bytes = base.files + one.files, base.size_bytes + one.size_bytes
                base = Outcome(outcome.files, outcome.size_bytes)
                left += len(one.failed)
        return left

    async def _fetch_and_send(self, copy: ExternalCopy, record: Record) -> Outcome:
        number, future = self.agent.request()
        self.agent.post(e.Want(number, record))
        try:
            answer = await future
        finally:
            self.agent.forget(number)
        path = self.agent.depot.staged_path(record)
        if answer.error or path is None:
            return Outcome(failed=[record.name])
        try:
            return await asyncio.to_thread(copy.send, [Item(record, path)], lambda so_far: None)
        finally:
            await asyncio.to_thread(self.agent.depot.forget_staged, record)

    async def _records(self) -> list[Record]:
        """The newest version of every name."""
        records: list[Record] = []
        offset = 0
        while page := await self.agent.manifest.queries.list_artifacts(limit=PAGE, offset=offset):
            records += [listed.record for listed in page if listed.record.kind != RESERVED_KIND]
            offset += PAGE
        return records

    async def _path(self, record: Record) -> Path | None:
        return await asyncio.to_thread(self.agent.depot.path_of, record.digest)

    def _reach(self, storage: ExternalStorage) -> Reach:
        """Raises ValueError with a sentence when SSH cannot be used."""
        return reach(Host(storage.host, f"{storage.host}:22", ssh=storage.ssh), self.agent.directory)

    # --- what is told ---

    async def _go_on_telling(self, storage: ExternalStorage, occurrence: int, outcome: Outcome) -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            now = int(time.time())
            running = Attempt(self.agent.node, occurrence, RUNNING, now, outcome.files, outcome.size_bytes)
            await self._tell(storage, running)

    async def _tell(self, storage: ExternalStorage, attempt: Attempt) -> None:
        number, future = self.agent.request()
        self.agent.post(e.Declare(number, record_name(key_of(storage), attempt.node), attempt.meta))
        try:
            await future
        finally:
            self.agent.forget(number)

    def facts(self) -> list[Facts]:
        """For `spore status`: what is configured, what was done last, who does what is due."""
        now = time.time()
        rows = []
        for storage in self.storages:
            occurrence = last_due(storage.schedule, now)
            attempts = sorted(self.attempts(storage), key=lambda attempt: attempt.at)
            last = attempts[-1] if attempts else None
            done = max((attempt.occurrence for attempt in attempts if attempt.state == DONE), default=0)
            rows.append(
                {
                    "host": storage.host,
                    "path": storage.path,
                    "schedule": storage.schedule,
                    "next_at": next_due(storage.schedule, now),
                    "runner": self.runner(storage, occurrence),
                    "done_for": done or None,
                    "last": _attempt_facts(last) if last else None,
                }
            )
        return rows


def _attempt_facts(attempt: Attempt) -> Facts:
    return {
        "node": attempt.node,
        "for": attempt.occurrence,
        "state": attempt.state,
        "at": attempt.at,
        "files": attempt.files,
        "bytes": attempt.size_bytes,
        "left": attempt.left,
        "why": attempt.why,
    }


def _follow(outcome: Outcome, so_far: Outcome) -> None:
    outcome.files, outcome.size_bytes = so_far.files, so_far.size_bytes


def _storages_of(agent: Agent, node: NodeId) -> tuple[ExternalStorage, ...]:
    return agent.fleet.routing_for(node).allowed_external_storage
