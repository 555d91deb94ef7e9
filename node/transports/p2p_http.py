"""Our own bulk protocol: chunk lists and ranges over mutual TLS, each chunk verified as it comes (`node.fetching`)."""

from __future__ import annotations

from node.fetching import Fetching
from node.transports.order import Kit, Order
from protocol.values import NodeId


class P2pHttp:
    """The transport that needs nothing but the peer's port."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit

    def missing(self) -> str:
        return ""

    def fetch(self, order: Order, nodes: tuple[NodeId, ...]) -> str:
        kit = self._kit
        shared = (kit.depot, kit.connections, order.meter, order.job, kit.on_wrong_bytes)
        return Fetching(order.record, nodes, *shared, order.headers).run()
