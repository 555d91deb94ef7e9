"""The agent's side of the local socket: `Door`, answered from the core, the manifest and the depot."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from node.agent import Agent
from node.broadcast_answers import BroadcastAnswers
from node.door import EXIT_USAGE, DoorError, Facts, PutRequest, WaitRequest
from node.node_answers import NodeAnswers
from node.policy_answers import PolicyAnswers
from node.progress import Progress
from node.spot_answers import SpotAnswers
from node.sync_answers import SyncAnswers
from node.transport_answers import TransportAnswers
from protocol import effects as f
from protocol import events as e
from protocol.chunks import CHUNK_BYTES, digest_of
from protocol.claims import Standing
from protocol.fleet import RESERVED_KIND, Kind
from protocol.membership import Membership
from protocol.names import NameRefused, name_of
from protocol.values import Record
from storage.acceptance import INLINE_BYTES_MAX, Accepted
from storage.blobs import Blob
from storage.queries import QueryRefused
from storage.refusals import StoreError

LARGE_PUTS = 4  # streams taken in at once; each holds a thread and a block
WAL_WAIT_SECONDS = 0.05  # between looks for room in the WAL: receipts release it batch by batch
LIST_PAGE = 1_000
VERIFY_PAGE = 200


class Service(PolicyAnswers, SyncAnswers, TransportAnswers, NodeAnswers, SpotAnswers, BroadcastAnswers):
    """Implements `node.door.Door` for one running agent."""

    def __init__(self, agent: Agent, notices: Callable[[], Facts] = dict) -> None:
        self.agent = agent
        self.notices = notices
        self._puts = ThreadPoolExecutor(LARGE_PUTS, thread_name_prefix="put")

    def close(self) -> None:
        self._puts.shutdown(wait=False, cancel_futures=True)

    # --- putting and getting ---

    async def put(self, request: PutRequest, content: bytes | AsyncIterator[bytes]) -> Facts:
        kind, name = self._name(request)
        if request.wait_copies:
            await self.ease(request.timeout_seconds)
        while not self.agent.committer.room():  # noqa: ASYNC110 - the WAL's room is no event
            await asyncio.sleep(WAL_WAIT_SECONDS)  # before the bytes are taken in: kept ones wait for no room later
        if isinstance(content, bytes) and len(content) <= INLINE_BYTES_MAX:
            digest, plain = digest_of(content)
            accepted = Accepted(digest, plain, len(content), request.mode & 0o777, f.Inline(content), None, ())
        else:
            accepted = await self._take_in(request, content)
        if request.origin:
            return await self.adopt(request, accepted)
        meta = (("snapshot", "sqlite"),) if kind.snapshot else ()
        number, future = self.agent.request()
        self.agent.post(
            e.Put(
                number,
                name,
                accepted.digest,
                accepted.blake3,
                accepted.size,
                accepted.mode,
                accepted.source,
                meta=meta,
                wait_copies=request.wait_copies,
                wait_domains=request.domains,
                deadline_ms=self._deadline_ms(request.timeout_seconds),
            )
        )
        try:
            answer = await self.answer(number, future)
        finally:
            if isinstance(accepted.source, f.Kept):
                self.agent.depot.unpin(accepted.source.place)
        record = self._record_of(answer)
        return {
            "name": record.name,
            "digest": record.digest.hex(),
            "size": record.size,
            "kind": record.kind,
            "copies": answer.copies + (not self.agent.replica.ctx.excluded),
        }

    def _name(self, request: PutRequest) -> tuple[Kind, str]:
        kind = self.agent.fleet.kind(request.kind)
        if kind is None:
            kinds = ", ".join(known.name for known in self.agent.fleet.kinds)
            raise DoorError(f"there is no kind {request.kind!r}; use one of {kinds}", EXIT_USAGE)
        if request.origin:
            return kind, request.name
        try:
            return kind, name_of(kind.name, request.name, self.agent.node, kind.namespace == "node")
        except NameRefused as refused:
            raise DoorError(str(refused), EXIT_USAGE) from refused

    async def _take_in(self, request: PutRequest, content: bytes | AsyncIterator[bytes]) -> Accepted:
        """Bytes above 64 KiB go through a private file, hashed on the way, in a thread."""
        loop = asyncio.get_running_loop()
        blocks = iter([content]) if isinstance(content, bytes) else _blocks(content, loop)
        try:
            return await loop.run_in_executor(self._puts, self.agent.depot.accept_stream, blocks, request.mode)
        except StoreError as problem:
            raise DoorError(str(problem)) from problem

    async def get(self, name: str) -> tuple[Facts, AsyncIterator[bytes]]:
        record = self.newest(name)
        blob = await self._open(record)
        staged = blob is None
        if blob is None:
            number, future = self.agent.request()
            self.agent.post(e.Want(number, record))
            await self.answer(number, future)
            blob = await asyncio.to_thread(self.agent.depot.open_staged, record)
        if blob is None:
            raise DoorError(f"the bytes of {name} came and went again; try once more")
        facts = {
            "name": record.name,
            "digest": record.digest.hex(),
            "blake3": record.blake3.hex(),
            "size": record.size,
            "mode": record.mode,
        }
        return facts, self._stream(record, blob, staged)

    async def _open(self, record: Record) -> Blob | None:
        try:
            return await asyncio.to_thread(self.agent.depot.open_blob, record.digest)
        except StoreError as problem:
            raise DoorError(str(problem)) from problem

    async def _stream(self, record: Record, blob: Blob, staged: bool) -> AsyncIterator[bytes]:
        """The bytes in pieces; a file that changes underneath ends the stream with an error, never with wrong bytes."""
        buffer = bytearray(min(CHUNK_BYTES, max(record.size, 1)))
        view = memoryview(buffer)
        offset = 0
        try:
            while offset < record.size:
                count = await asyncio.to_thread(self._read, blob, view, offset)
                yield bytes(view[:count])
                offset += count
        finally:
            blob.close()
            if staged:
                self.agent.spawn(self._forget_staged(record))  # a stream that is broken off can wait for nothing

    async def _forget_staged(self, record: Record) -> None:
        with suppress(StoreError):  # what cannot be removed now is swept within a week
            await asyncio.to_thread(self.agent.depot.forget_staged, record)

    def _read(self, blob: Blob, view: memoryview, offset: int) -> int:
        try:
            count = blob.read_into(view, offset)
            blob.check()
        except StoreError as problem:
            raise DoorError(str(problem)) from problem
        if count == 0:
            raise DoorError("the file ended early; it is being checked, try once more")
        return count

    # --- looking ---

    async def ls(self, glob: str | None) -> AsyncIterator[Facts]:
        offset = 0
        while True:
            try:
                page = await self.agent.manifest.queries.list_artifacts(glob, limit=LIST_PAGE, offset=offset)
            except QueryRefused as refused:
                raise DoorError(str(refused), EXIT_USAGE) from refused
            for listed in page:
                if listed.record.kind != RESERVED_KIND:
                    yield _listed(listed.record, listed.copies)
            if len(page) < LIST_PAGE:
                return
            offset += LIST_PAGE

    async def where(self, name: str) -> Facts:
        found = await self.agent.manifest.queries.where(name)
        if found is None:
            raise DoorError(f"there is no artifact {name}; `spore ls` shows what there is")
        holders = [
            {
                "node": holder.holding.node,
                "store": holder.holding.store.hex(),
                "domain": holder.member.domain if holder.member else self.agent.fleet.domain(holder.holding.node),
                "state": "alive" if self.agent.replica.members.is_alive(holder.holding.node) else "down",
                "verified_at": holder.holding.seq >> 16,
            }
            for holder in found.holders
        ]
        record = found.record
        return {
            "name": record.name,
            "digest": record.digest.hex(),
            "blake3": record.blake3.hex(),
            "size": record.size,
            "version": record.hlc,
            "versions": found.versions,
            "origin": record.origin,
            "copies": len({holder["store"] for holder in holders}),
            "durable": self.agent.replica.debts.enough(record, 0, 0),
            "holders": holders,
            "transfers": self.choices(record.digest),
        }

    async def status(self, cluster: bool) -> Facts:
        agent = self.agent
        totals = await agent.manifest.queries.totals()
        room = await asyncio.to_thread(agent.room.state)
        own = [*(debt.record for debt in agent.replica.debts.own_open()), *agent.replica.repair.own_waiting()]
        members = agent.replica.members
        host = agent.fleet.host(agent.node)
        kinds = {
            k.kind: {"artifacts": k.artifacts, "bytes": k.size_bytes} for k in totals.kinds if k.kind != RESERVED_KIND
        }
        facts: Facts = {
            "node": agent.node,
            "cluster": agent.fleet.cluster,
            "role": host.role,
            "ephemeral": host.ephemeral,
            "ephemeral_by": host.ephemeral_by,
            "notices": self.notices(),
            "survival": self.survival(),
            "excluded": host.excluded,
            "release": release_name(),
            "uptime_seconds": round(time.monotonic() - agent.started, 1),
            "artifacts": sum(kind["artifacts"] for kind in kinds.values()),
            "bytes": sum(kind["bytes"] for kind in kinds.values()),
            "kinds": kinds,
            "at_risk": {"artifacts": len(own), "bytes": sum(record.size for record in own)},
            "disk": await self.disk_facts(room),
            "repair": {"waiting": agent.replica.repair.waiting()},
            "external": agent.external.facts(),
            "store": self.store_facts(),
            "members": {
                "alive": 1 + len(members.alive),
                "suspect": sum(members.standing(node) is Standing.SUSPECT for node in members.alive),
                "down": members.down(),
            },
            "healthy": agent.replica.accepting.healthy,
            "not_running": agent.not_running(),
            "draining": agent.replica.draining.active,
            "wal": {
                "bytes": agent.wal.usage().bytes,
                "entries": agent.wal.usage().live_entries,
                "waits_seconds": round(agent.committer.waits_seconds(), 1),
            },
            "transfers": [_transfer(p) for p in (*agent.transfers.snapshot(), *agent.bulk.inbox.snapshot())],
            "breakers": agent.guards.facts(),
            "relays": agent.carriage.desk.facts(),
            "transports": self.transports(),
            "scrub": agent.scrubber.facts(),
            "port": agent.listener.port,
        }
        if agent.intake.watcher is not None:
            watched = agent.intake.watcher.facts
            facts["watcher"] = {"notified": watched.notified, "waiting": watched.candidates, "scans": watched.scans}
        if cluster:
            facts["cluster_members"] = await self.peers()
            facts["cluster_totals"] = self.cluster_totals()
        return facts

    async def peers(self) -> list[Facts]:
        agent = self.agent
        members = agent.replica.members
        rows = []
        for node in sorted({*members.peers, *(m.node for m in agent.manifest.members())} - {agent.node}):
            member = members.alive.get(node) or agent.manifest.member(node)
            host = agent.fleet.host(node)
            rows.append(
                {
                    "node": node,
                    "address": (member.address if member else "") or host.dial_address or "",
                    "state": _state(members, node),
                    "role": member.role if member else host.role,
                    "provider": (member.provider if member else host.provider) or "",
                    "domain": member.domain if member else agent.fleet.domain(node),
                    "rtt_ms": _rounded(agent.sessions.rtt_ms(node)),
                    "ephemeral": member.ephemeral if member else host.ephemeral,
                    "accepting": bool(member and member.accepting),
                    "at_risk_artifacts": member.at_risk_count if member else 0,
                    "at_risk_bytes": member.at_risk_bytes if member else 0,
                    "used_bytes": member.used_bytes if member else 0,
                    "capacity_bytes": member.capacity_bytes if member else 0,
                    "policy": "same" if member and member.policy_hash == members.own.policy_hash else "differs",
                }
            )
        return rows

    def events(self, follow: bool) -> AsyncIterator[Facts]:
        return self.agent.journal.events(follow)

    async def risk(self, cluster: bool) -> list[Facts]:
        if cluster:
            return await self.cluster_risk()
        debts = self.agent.replica.debts
        rows = []
        for debt in debts.own_open():
            around = debts.pool_of(debt.record)
            rows.append(
                {
                    "name": debt.record.name,
                    "digest": debt.record.digest.hex(),
                    "size": debt.record.size,
                    "copies": len(debt.receipts),
                    "needed": around.copies,
                    "why": debt.why(around),
                }
            )
        return rows + self.waiting_for_repair()

    async def progress(self, name: str) -> Facts:
        """How far the pushes of an artifact are, and why they stall."""
        record = self.newest(name)
        debts = self.agent.replica.debts
        debt = debts.open.get(record.key)
        around = debts.pool_of(record)
        receipts = debts.receipts(record)
        moving = [p for p in self.agent.transfers.snapshot() if debt is not None and p.peer in debt.asked]
        fetchers = self.agent.replica.swarming.audiences.get(record.digest, {}) if debt is not None else {}
        pulled = sum(self.agent.replica.swarming.bytes_of(record.digest, node, record.size) for node in fetchers)
        return {
            "name": name,
            "copies": len(receipts),
            "needed": around.copies,
            "why": debt.why(around) if debt else "",
            "bytes_done": sum(p.bytes_done for p in moving) + pulled,
            "bytes_total": sum(p.bytes_total for p in moving) + record.size * len(fetchers),
            "transfers": [_transfer(p) for p in moving],
        }

    # --- doing ---

    async def rm(self, name: str) -> Facts:
        number, future = self.agent.request()
        self.agent.post(e.Remove(number, name))
        record = self._record_of(await self.answer(number, future))
        return {"name": record.name, "state": "deleted"}

    async def wait(self, request: WaitRequest) -> Facts:
        number, future = self.agent.request()
        deadline = self._deadline_ms(request.timeout_seconds)
        self.agent.post(e.Await(number, request.name, request.copies, request.domains, deadline))
        answer = await self.answer(number, future)
        record = self._record_of(answer)
        return {"name": record.name, "digest": record.digest.hex(), "copies": answer.copies, "durable": answer.durable}

    async def flush(self, deadline_seconds: float) -> Facts:
        number, future = self.agent.request()
        self.agent.post(e.Flush(number, self.agent.now_ms() + int(deadline_seconds * 1000), leave=False))
        try:
            answer = await future
        finally:
            self.agent.forget(number)
        own = self.agent.replica.debts.own_open()
        return {
            "durable": answer.durable,
            "at_risk": {"artifacts": len(own), "bytes": sum(debt.record.size for debt in own)},
            "why": answer.error,
        }

    async def verify(self, rebuild: bool) -> AsyncIterator[Facts]:
        """Hash again what is held here. Damage is set aside, withdrawn, and fetched again where copies are too few."""
        if rebuild:
            raise DoorError(
                "the manifest cannot be rebuilt under a running agent; stop the agent, run `spore verify --rebuild` "
                "and start it again",
                EXIT_USAGE,
            )
        queries = self.agent.manifest.queries
        total, total_bytes = await queries.count_places()
        done = done_bytes = 0
        damaged: list[Facts] = []
        after = ""
        while page := await queries.places(after, VERIFY_PAGE):
            for place in page:
                after = place.path
                problem = await asyncio.to_thread(self.agent.depot.verify, place)
                done, done_bytes = done + 1, done_bytes + place.size
                if problem:
                    damaged.append({"path": place.path, "digest": place.digest.hex(), "problem": problem})
            yield {"done": done, "total": total, "bytes": done_bytes, "bytes_total": total_bytes}
        yield {"result": True, "checked": done, "bytes": done_bytes, "damaged": damaged}

    # --- helpers ---

    def _record_of(self, answer: f.Answer) -> Record:
        if answer.record is None:
            raise DoorError("the agent gave an answer without a record; see its log")
        return answer.record

    def _deadline_ms(self, seconds: float) -> int:
        return self.agent.now_ms() + int(seconds * 1000) if seconds > 0 else 0


def release_name() -> str:
    """Which release runs: the folder it was rolled out to, `<version>-<hash>`, else the version alone."""
    folder = Path(sys.prefix)
    return folder.name if folder.parent.name == "releases" else version("spore-agent")


def _blocks(content: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> Iterator[bytes]:
    """An asynchronous iterator, for a thread: the socket's back-pressure reaches the client."""

    async def following() -> bytes | None:
        return await anext(content, None)

    while True:
        block = asyncio.run_coroutine_threadsafe(following(), loop).result()
        if block is None:
            return
        yield block


def _listed(record: Record, copies: int) -> Facts:
    return {
        "name": record.name,
        "kind": record.kind,
        "digest": record.digest.hex(),
        "size": record.size,
        "origin": record.origin,
        "state": record.state.name.lower(),
        "copies": copies,
    }


def _transfer(progress: Progress) -> Facts:
    return {
        "peer": progress.peer,
        "direction": progress.direction,
        "bytes_done": progress.bytes_done,
        "bytes_total": progress.bytes_total,
        "running_seconds": round(progress.running_seconds, 3),
        "still_seconds": round(progress.still_seconds, 3),
        "waits_for": progress.waits_for,
        "left_seconds": round(progress.left_seconds, 1),
    }


def _state(members: Membership, node: str) -> str:
    if node in members.removed:
        return "removed"
    if node in members.alive:
        return "suspect" if members.standing(node) is Standing.SUSPECT else "alive"
    return "left" if members.has_left(node) else "down"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
