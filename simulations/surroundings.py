"""What a simulated node stands in: time, network, streams, the fleet, the oracle, and the counters of what bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.fleet import Fleet
from simulations.network import Network
from simulations.oracle import Oracle
from simulations.schedule import Schedule, Trace

if TYPE_CHECKING:  # streams move bytes between nodes, and nodes start streams
    from simulations.streams import Streams


@dataclass(slots=True, eq=False)
class Surroundings:
    """Shared by all nodes of one world. `bites` counts, for each fault, how often it really struck."""

    fleet: Fleet
    schedule: Schedule
    trace: Trace
    network: Network
    oracle: Oracle
    bites: dict[str, int]
    streams: Streams = field(init=False)
