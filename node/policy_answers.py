"""The answers about where data goes: plans and pins, from the core and the manifest."""

from __future__ import annotations

import asyncio
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from node.door import EXIT_USAGE, DoorError, Facts
from protocol import effects as f
from protocol import events as e
from protocol.clock import age_ms
from protocol.fleet import RESERVED_KIND, Kind
from protocol.names import NameRefused, check_name, check_node
from protocol.pins import pin_name
from protocol.planning import Candidate, Plan, plan
from protocol.recommending import Newest, members_summary, recommend
from protocol.values import Member, NodeId, Record, State, StoreId, stores_of
from storage.queries import QueryRefused, check_glob
from storage.room import RoomState

if TYPE_CHECKING:
    from node.agent import Agent

RECOMMENDED_REPAIRS = 20  # the most endangered; how many wait stands in the status
EXPIRED_ROWS_MAX = 1_000  # refusals listed; one reason usually holds for all
RISK_ROWS_MAX = 10_000  # of what waits for repair; the sums tell the rest


class PolicyAnswers:
    """The part of `node.door.Door` that speaks of placement, for one running agent."""

    agent: Agent

    async def plan(self, name: str) -> Facts:
        record = self.newest(name)
        kind = self.agent.fleet.kind_of(name)
        if kind is None:
            raise DoorError(f"the hosts file of this node has no kind {record.kind}, so no plan for {name}")
        return plan_facts(name, kind, self.plan_of(record, kind))

    def plan_of(self, record: Record, kind: Kind) -> Plan:
        """The plan of a version, by all that this node knows now."""
        replica = self.agent.replica
        origin = self._member(record.origin)
        return plan(
            record.digest,
            kind,
            replica.ctx.min_copies(record),
            self.candidates(record, kind),
            record.origin,
            origin.store if origin else b"",
        )

    def nodes(self) -> list[NodeId]:
        """Every node known, this one included."""
        agent = self.agent
        heard = (member.node for member in agent.manifest.members())
        return sorted({*agent.replica.members.peers, *agent.fleet.hosts, *heard, agent.node})

    def _member(self, node: NodeId) -> Member | None:
        members = self.agent.replica.members
        return members.own if node == self.agent.node else members.row(node)

    def candidates(self, record: Record | None = None, kind: Kind | None = None) -> list[Candidate]:
        """Every node known as a candidate, for a version of a kind or (without) for nothing in particular."""
        held = stores_of(self.agent.manifest.holdings(record.digest)) if record else frozenset()
        return [self._candidate(node, record, kind, held) for node in self.nodes()]

    def _candidate(self, node: NodeId, record: Record | None, kind: Kind | None, held: frozenset[StoreId]) -> Candidate:
        agent = self.agent
        members, host = agent.replica.members, agent.fleet.host(node)
        member = self._member(node) or Member(
            node, 0, role=host.role, domain=agent.fleet.domain(node), ephemeral=host.ephemeral, store=node.encode()
        )
        return Candidate(
            member,
            alive=members.is_alive(node),
            left=members.has_left(node),
            receives=kind is None or agent.fleet.receives(node, kind.name),
            priority=host.sync_priority,
            pinned=record is not None and agent.replica.pins.is_pinned(node, record.name),
            holds=member.store in held,
        )

    async def disk_facts(self, room: RoomState) -> Facts:
        """The disk, with our own share told apart: what we hold for others, what else is ours, what is not."""
        _, held_bytes = await self.agent.manifest.queries.held()
        return {
            "used_percent": round(room.used_percent, 1),
            "cap_percent": room.cap_percent,
            "accepting": room.accepting,
            "capacity_bytes": room.capacity_bytes,
            "held_bytes": room.held_bytes,
            "own_bytes": max(0, held_bytes - room.held_bytes),
            "other_bytes": max(0, room.used_bytes - max(held_bytes, room.held_bytes)),
            "max_bytes": room.max_bytes,
            "excess_bytes": room.excess_bytes,
        }

    def store_facts(self) -> Facts:
        """Our root, who shares it, and where the hosts file says something else."""
        sharing, store = self.agent.replica.sharing, self.agent.depot.store
        return {
            "uuid": store.uuid.hex(),
            "shared": store.shared,
            "mates": sorted(node for node, mate in sharing.mates.items() if mate.seen),
            "contradictions": list(sharing.contradictions().values()),
        }

    # --- the cluster as a whole ---

    def cluster_totals(self) -> Facts:
        """All members in sums."""
        return {**members_summary(self.candidates()), "repair_waiting": self.agent.replica.repair.waiting()}

    async def age(self, glob: str | None) -> list[Facts]:
        """For each kind, and each first folder or origin below it, the newest version: how old, where, where not."""
        rows: dict[str, Facts] = {}
        for newest in await self._newest():
            row = self._age_facts(newest)
            kind = f"{newest.record.kind}/"
            if kind not in rows or row["version_at"] > rows[kind]["version_at"]:
                rows[kind] = {**row, "prefix": kind}
            rows.setdefault(f"{newest.prefix}/", row)
        wanted = check_glob(glob)
        return [row for prefix, row in sorted(rows.items()) if fnmatchcase(prefix, wanted)]

    async def _newest(self) -> list[Newest]:
        found = []
        for prefix, record in await self.agent.manifest.queries.newest_below():
            kind = self.agent.fleet.kind_of(record.name)
            if kind is not None:
                found.append(Newest(prefix, record, self.plan_of(record, kind)))
                await asyncio.sleep(0)  # a plan among many nodes takes a millisecond
        return found

    def _age_facts(self, newest: Newest) -> Facts:
        record = newest.record
        age_seconds = max(0, age_ms(record.hlc, self.agent.now_ms())) / 1000
        held = self.agent.manifest.holdings(record.digest)
        missing = [h.node for h in newest.plan.holders if not h.holds and h.node != record.origin]
        return {
            "prefix": f"{newest.prefix}/",
            "kind": record.kind,
            "name": record.name,
            "version_at": round(self.agent.now_ms() / 1000 - age_seconds, 3),
            "age_seconds": round(age_seconds, 3),
            "copies": len(stores_of(held)),
            "needed": newest.plan.copies,
            "stale": missing,
        }

    async def recommend(self) -> list[Facts]:
        """What should move where, or be changed, and why."""
        agent = self.agent
        caps = {node: agent.fleet.routing_for(node).disk_cap_percent for node in self.nodes()}
        worst = agent.replica.repair.worst(RECOMMENDED_REPAIRS)
        advice = recommend(self.candidates(), caps, agent.replica.members.own.policy_hash, await self._newest(), worst)
        return [
            {
                "action": each.action,
                "name": each.name,
                "from": each.source,
                "to": each.target,
                "why": each.why,
                "by_itself": each.by_itself,
            }
            for each in advice
        ]

    async def expire(self, glob: str, older_seconds: float) -> Facts:
        """Delete every name that matches and whose newest version is older; one that is written meanwhile stays."""
        before_ms = self.agent.now_ms() - int(older_seconds * 1000)
        removed, refused = 0, []
        for name in await self._older(glob, before_ms):
            number, future = self.agent.request()
            self.agent.post(e.Remove(number, name, before_ms))
            try:
                await self.answer(number, future)
                removed += 1
            except DoorError as problem:
                refused.append({"name": name, "why": problem.sentence})
        return {"removed": removed, "refused": refused[:EXPIRED_ROWS_MAX]}

    async def _older(self, glob: str, before_ms: int) -> list[str]:
        names: list[str] = []
        offset = 0
        try:
            while page := await self.agent.manifest.queries.list_artifacts(glob, limit=1_000, offset=offset):
                offset += len(page)
                old = [each.record for each in page if age_ms(each.record.hlc, before_ms) >= 0]
                names += [record.name for record in old if record.kind != RESERVED_KIND]
        except QueryRefused as refused:
            raise DoorError(str(refused), EXIT_USAGE) from refused
        return names

    def waiting_for_repair(self) -> list[Facts]:
        """What was accepted here, was durable, and lost copies since: at risk until its turn comes."""
        replica = self.agent.replica
        rows = []
        for danger, record in replica.repair.worst(RISK_ROWS_MAX):
            if record.origin == self.agent.node:
                rows.append(
                    {
                        "name": record.name,
                        "digest": record.digest.hex(),
                        "size": record.size,
                        "copies": len(replica.debts.receipts(record)),
                        "needed": replica.ctx.min_copies(record),
                        "why": f"copies were lost, {danger.copies} are left; it waits for its turn behind fresh data",
                    }
                )
        return rows

    async def pin(self, name: str, node: str, pinned: bool) -> Facts:
        node = node or self.agent.node
        try:
            check_node(node)
            check_name(name)
            pin = check_name(pin_name(node, name))
        except NameRefused as refused:
            raise DoorError(str(refused), EXIT_USAGE) from refused
        known = node in self.nodes()
        if not known and pinned:
            raise DoorError(f"there is no node {node}; `spore peers` shows who there is", EXIT_USAGE)
        if pinned and not self.agent.fleet.receives(node, name.partition("/")[0]):
            raise DoorError(f"{node} is excluded from sync, or from this kind; a pin does not change that", EXIT_USAGE)
        if pinned:
            self.newest(name)
        number, future = self.agent.request()
        self.agent.post(e.Declare(number, pin, (("pinned", int(pinned)),)))
        await self.answer(number, future)
        return {"name": name, "node": node, "pinned": pinned}

    def newest(self, name: str) -> Record:
        """The newest version of a name. Raises DoorError when there is no live one."""
        record = next(iter(self.agent.manifest.versions(name)), None)
        if record is None or record.state is not State.LIVE or self.agent.fleet.kind_of(name) is None:
            raise DoorError(f"there is no artifact {name}; `spore ls` shows what there is")
        return record

    async def answer(self, number: int, future: asyncio.Future[f.Answer]) -> f.Answer:
        """The core's answer to a request. Raises DoorError when it was refused."""
        try:
            answer = await future
        finally:
            self.agent.forget(number)
        if answer.error:
            raise DoorError(answer.error)
        return answer


def plan_facts(name: str, kind: Kind, made: Plan) -> Facts:
    """A plan as `spore plan --json` prints it."""
    return {
        "name": name,
        "kind": kind.name,
        "strategy": kind.strategy,
        "copies": made.copies,
        "domains": made.domains,
        "enough": made.enough,
        "holders": [
            {
                "node": holder.node,
                "store": holder.store.hex(),
                "domain": holder.domain,
                "role": holder.role,
                "counts": holder.counts,
                "holds": holder.holds,
                "why": holder.why,
            }
            for holder in made.holders
        ],
        "others": [{"node": other.node, "why": other.why} for other in made.others],
    }
