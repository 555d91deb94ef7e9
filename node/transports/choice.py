"""Which ways lead to an artifact now, in the order in which they are tried, each with the reason in a sentence.

Pure: whoever asks has looked at addresses, breakers, programs and sessions before. docs/transports.md shows this as a
picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from protocol.values import NodeId

P2P_HTTP, ARIA2, RSYNC, RELAY = "p2p_http", "aria2", "rsync", "relay"
ARIA2_BYTES_MIN = 100_000_000  # below, starting a program and copying what it wrote costs more than it wins
ARIA2_SOURCES_MIN = 2  # from one source our own protocol is as fast, and verifies as it reads
RELAYS_MAX = 3  # nodes asked to carry; who is not reached by these is in another half of the fleet


@dataclass(frozen=True, slots=True)
class Source:
    """A node that holds the bytes, as it can be reached from here. `port` and `ssh` are "" or say why not."""

    node: NodeId
    port: str = ""
    ssh: str = "no SSH entry in the hosts file"
    near: bool = False  # the same provider: what it sends costs its owner least


@dataclass(frozen=True, slots=True)
class Situation:
    """What a choice depends on. `missing`: transports that cannot be used on this machine, each with the reason."""

    wanted_bytes: int  # of the artifact, without what staging has already
    sources: tuple[Source, ...]
    relays: tuple[NodeId, ...] = ()
    missing: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """One transport and the nodes it asks, in order; made by `ways`, tried by the carrier, told to people."""

    transport: str
    nodes: tuple[NodeId, ...]
    why: str


def ways(situation: Situation) -> tuple[Way, ...]:
    """The ways in order. At worst one that will fail and say why: a fetch never ends without having tried."""
    missing = situation.missing or {}
    sources = sorted(situation.sources, key=lambda source: not source.near)  # stable: near ones first
    reached = tuple(source.node for source in sources if not source.port)
    found: list[Way] = []
    if situation.wanted_bytes > ARIA2_BYTES_MIN and len(reached) >= ARIA2_SOURCES_MIN and ARIA2 not in missing:
        found.append(
            Way(ARIA2, reached, f"{situation.wanted_bytes} bytes lie on {len(reached)} nodes that are reached")
        )
    if reached:
        found.append(Way(P2P_HTTP, reached, f"the port of {_named(reached)} is reached"))
    if RSYNC not in missing:
        found += [Way(RSYNC, (s.node,), _by_ssh(s)) for s in sources if not s.ssh]
    if situation.relays and RELAY not in missing:
        carriers = tuple(node for node in situation.relays if node not in {s.node for s in sources})[:RELAYS_MAX]
        found += [Way(RELAY, carriers, f"{_named(carriers)} may reach {_named(s.node for s in sources)}")] * bool(
            carriers
        )
    unreached = tuple(source.node for source in sources if source.port)
    if unreached:  # last, and cheap while its breaker is open: the port may be back
        found.append(Way(P2P_HTTP, unreached, "; ".join(s.port for s in sources if s.port)))
    return tuple(found)


def _by_ssh(source: Source) -> str:
    return f"{source.node} is reached by SSH" + (f" ({source.port})" if source.port else ", should its port fail")


def _named(nodes: Iterable[NodeId]) -> str:
    return ", ".join(nodes)
