"""The transports there are. A new one is a file with a class like these, a line here, and its rule in `choice.ways`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from node.transports.aria2 import Aria2
from node.transports.choice import ARIA2, P2P_HTTP, RELAY, RSYNC
from node.transports.order import Kit, Transport
from node.transports.p2p_http import P2pHttp
from node.transports.relay import Relay
from node.transports.rsync import Rsync

TABLE: Mapping[str, Callable[[Kit], Transport]] = {
    P2P_HTTP: P2pHttp,
    ARIA2: Aria2,
    RSYNC: Rsync,
    RELAY: Relay,
}
