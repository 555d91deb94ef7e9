"""What should move where, or be changed, and why: `spore recommend`, from facts that one node has at hand.

Pure and bounded: it looks at members, at the newest version below each prefix, and at what waits for repair; never at
every record. It recommends and does nothing; what the nodes do by themselves is said as such.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocol.planning import Candidate, Plan
from protocol.repair import Danger
from protocol.values import Member, NodeId, Record

NEARLY_FULL_POINTS = 5.0  # this close to its cap a disk is worth a look
ROWS_MAX = 200  # more are no recommendation but a list


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest version below a prefix, who should hold it, and who does."""

    prefix: str
    record: Record
    plan: Plan


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to do. `by_itself` says that the nodes do it anyway, in time."""

    action: str  # copy, free, grow, agree, spread, start
    name: str
    source: NodeId
    target: NodeId
    why: str
    by_itself: bool = False


def recommend(
    candidates: Sequence[Candidate],
    caps: dict[NodeId, float],
    own_hash: str,
    newest: Iterable[Newest],
    endangered: Sequence[tuple[Danger, Record]],
) -> list[Advice]:
    """The most urgent first. `caps` are the used percents up to which nodes take bytes for others."""
    found = [
        *_hosts_files(candidates, own_hash),
        *_repairs(endangered),
        *(advice for each in newest for advice in _newest(each)),
        *_domains(candidates),
        *_disks(candidates, caps),
        *_away(candidates),
    ]
    return found[:ROWS_MAX]


def _hosts_files(candidates: Iterable[Candidate], own_hash: str) -> list[Advice]:
    """While they differ, nothing is given up anywhere."""
    differing = [
        each.member.node for each in candidates if each.alive and each.member.policy_hash not in ("", own_hash)
    ]
    why = "it goes by another hosts file; until it reloads ours, no node gives up copies or older versions"
    return [Advice("agree", "", "", node, why) for node in differing]


def _repairs(endangered: Iterable[tuple[Danger, Record]]) -> list[Advice]:
    found = []
    for danger, record in endangered:
        left = "one copy is left" if danger.copies == 1 else f"{danger.copies} copies are left"
        lasting = "" if danger.lasting else ", none on a host that lasts"
        found.append(Advice("copy", record.name, "", "", f"{left}{lasting}; it waits for its repair", by_itself=True))
    return found


def _newest(each: Newest) -> list[Advice]:
    """A newest version that cannot be made durable, and nodes that should have it and have not."""
    found = []
    if not each.plan.enough:
        able = sum(holder.counts for holder in each.plan.holders)
        why = f"only {able} of the {each.plan.copies} stores it needs can hold it: add a host or free disks"
        found.append(Advice("grow", each.record.name, "", "", why))
    holding = [holder.node for holder in each.plan.holders if holder.holds]
    source = holding[0] if holding else each.record.origin
    found += [
        Advice("copy", each.record.name, source, holder.node, holder.why, by_itself=True)
        for holder in each.plan.holders
        if not holder.holds and holder.node != each.record.origin
    ]
    return found


def _domains(candidates: Iterable[Candidate]) -> list[Advice]:
    lasting = [each.member for each in candidates if each.eligible and not each.member.ephemeral]
    if len({member.store for member in lasting}) < 2 or len({member.domain for member in lasting}) != 1:
        return []
    domain = lasting[0].domain or "without name"
    why = f"all stores that last lie in the domain {domain}: one failure takes every copy; add a host elsewhere"
    return [Advice("spread", "", "", "", why)]


def _disks(candidates: Iterable[Candidate], caps: dict[NodeId, float]) -> list[Advice]:
    found = []
    for each in candidates:
        member, cap = each.member, caps.get(each.member.node, 100.0)
        if not each.alive or member.excluded or not member.capacity_bytes:
            continue
        used = 100.0 * member.used_bytes / member.capacity_bytes
        if not member.accepting:
            why = f"its disk is {used:.0f}% used and takes nothing for others (cap {cap:g}%)"
            found.append(Advice("free", "", "", member.node, why))
        elif used > cap - NEARLY_FULL_POINTS:
            found.append(
                Advice("free", "", "", member.node, f"its disk is {used:.0f}% used, close to its cap of {cap:g}%")
            )
    return found


def _away(candidates: Iterable[Candidate]) -> list[Advice]:
    why = (
        "it is down and did not say goodbye; what it held is copied again, but what it had at risk is on its disk alone"
    )
    return [
        Advice("start", "", "", each.member.node, why)
        for each in candidates
        if not each.alive and not each.left and not each.member.ephemeral and each.member.at_risk_count
    ]


def members_summary(candidates: Sequence[Candidate]) -> dict[str, int]:
    """The cluster in sums, as `status --cluster` shows it."""
    alive = [each.member for each in candidates if each.alive]
    disks: dict[bytes, Member] = {member.store: member for member in alive}
    return {
        "alive": len(alive),
        "known": len(candidates),
        "stores": len(disks),
        "domains": len({member.domain for member in alive}),
        "ephemeral": sum(member.ephemeral for member in alive),
        "excluded": sum(member.excluded for member in alive),
        "accepting": sum(member.accepting for member in alive),
        "capacity_bytes": sum(member.capacity_bytes for member in disks.values()),
        "used_bytes": sum(member.used_bytes for member in disks.values()),
        "at_risk_artifacts": sum(member.at_risk_count for member in alive),
        "at_risk_bytes": sum(member.at_risk_bytes for member in alive),
        "hosts_files": len({member.policy_hash for member in alive if member.policy_hash}),
    }
