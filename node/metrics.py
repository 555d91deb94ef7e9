"""The agent's metrics, in Prometheus' text form; read from the agent when asked, never pushed.

Every name here is documented in docs/metrics.md; a test fails when one is not.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psutil
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from protocol.survival import measure

if TYPE_CHECKING:
    from node.agent import Agent

GAUGES = {
    "spore_at_risk_artifacts": "artifacts accepted here that are not durable elsewhere yet",
    "spore_lost_artifacts": "artifacts that nobody else has: what would be lost if this node died now",
    "spore_lost_bytes": "bytes of those artifacts",
    "spore_savable_bytes": "bytes of those artifacts that the provider's notice could save, at the uplink seen",
    "spore_at_risk_bytes": "bytes of what is not durable elsewhere yet",
    "spore_at_risk_oldest_seconds": "how long the oldest of those artifacts has been at risk",
    "spore_draining": "1 while this node is drained: it accepts nothing",
    "spore_certificate_seconds": "seconds until this node's certificate ends",
    "spore_members_alive": "nodes that this one believes alive, itself included",
    "spore_members_known": "nodes this one knows of, itself included",
    "spore_wal_bytes": "bytes of the write-ahead log on disk",
    "spore_wal_entries": "entries of the write-ahead log that are not released",
    "spore_wal_waits_seconds": "for how long puts and files have been waiting for room in the write-ahead log",
    "spore_commit_groups": "group commits since the start",
    "spore_commit_effects": "durable effects in those groups",
    "spore_session_sent_bytes": "bytes of control messages sent since the start",
    "spore_session_received_bytes": "bytes of control messages received since the start",
    "spore_disk_used_bytes": "used bytes of the file system of the root",
    "spore_disk_capacity_bytes": "used and available bytes of the file system of the root",
    "spore_accepting": "1 while the disk cap allows bytes for others",
    "spore_sent_payload_bytes": "payload bytes sent since the start, within the egress budgets",
    "spore_relayed_artifacts": "artifacts carried since the start for nodes that cannot reach each other",
    "spore_relayed_bytes": "bytes of those artifacts",
    "spore_not_running": "works of the agent that should never end and have ended",
    "spore_uptime_seconds": "seconds since the agent started",
    "spore_resident_bytes": "memory of the agent's process that is in use",
    "spore_cpu_seconds": "processor time of the agent's process, user and system, since its start",
}


class Metrics:
    """A registry of gauges, filled at each scrape."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._registry = CollectorRegistry()
        self._gauges = {name: Gauge(name, text, registry=self._registry) for name, text in GAUGES.items()}

    def render(self, agent: Agent) -> bytes:
        for name, value in self._read(agent).items():
            self._gauges[name].set(value)
        return generate_latest(self._registry)

    def _read(self, agent: Agent) -> dict[str, float]:
        members, debts = agent.replica.members, agent.replica.debts.own_open()
        usage = agent.wal.usage()
        return {
            "spore_at_risk_artifacts": len(debts),
            **_survival(agent),
            "spore_at_risk_bytes": sum(debt.record.size for debt in debts),
            "spore_at_risk_oldest_seconds": max((agent.now_ms() - debt.since_ms for debt in debts), default=0) / 1000,
            "spore_draining": float(agent.replica.draining.active),
            "spore_certificate_seconds": agent.contexts.identity.facts.not_after - time.time(),
            "spore_members_alive": 1 + len(members.alive),
            "spore_members_known": 1 + len(members.alive) + members.down(),
            "spore_wal_bytes": usage.bytes,
            "spore_wal_entries": usage.live_entries,
            "spore_wal_waits_seconds": agent.committer.waits_seconds(),
            "spore_commit_groups": agent.committer.groups,
            "spore_commit_effects": agent.committer.effects,
            "spore_session_sent_bytes": agent.sessions.sent_bytes,
            "spore_session_received_bytes": agent.sessions.received_bytes,
            "spore_disk_used_bytes": members.own.used_bytes,
            "spore_disk_capacity_bytes": members.own.capacity_bytes,
            "spore_accepting": float(members.own.accepting),
            "spore_sent_payload_bytes": agent.throttle.sent_bytes,
            "spore_relayed_artifacts": agent.carriage.desk.carried,
            "spore_relayed_bytes": agent.carriage.desk.carried_bytes,
            "spore_not_running": len(agent.not_running()),
            "spore_uptime_seconds": agent.loop.time() - agent.started,
            "spore_resident_bytes": self._process.memory_info().rss,
            "spore_cpu_seconds": sum(self._process.cpu_times()[:2]),
        }


def _survival(agent: Agent) -> dict[str, float]:
    replica = agent.replica
    meter = measure(replica.debts.own_open(), replica.ctx.notice_seconds, replica.sending.uplink_rate())
    return {
        "spore_lost_artifacts": meter.lost_artifacts,
        "spore_lost_bytes": meter.lost_bytes,
        "spore_savable_bytes": meter.savable_bytes,
    }
