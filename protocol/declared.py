"""What was declared of nodes, in records without bytes under our own kind, which every node has:

    spore/revoked/NODE   meta since=<unix seconds>: certificates of the node from before are refused
    spore/removed/NODE   meta removed=1: the node is gone for good; 0: it has joined anew

Revoking is about certificates alone, and the handshakes see to it. Whoever is removed counts for nothing: it is not
alive, it is not dialled, what it says is not heard, and what it held is no copy any more, so that repair begins at
once.
"""

from __future__ import annotations

from protocol.context import Context
from protocol.effects import Hangup
from protocol.fleet import RESERVED_KIND
from protocol.membership import Membership
from protocol.values import NodeId, Record, State

_REVOKED = f"{RESERVED_KIND}/revoked/"
_REMOVED = f"{RESERVED_KIND}/removed/"


def removed_name(node: NodeId) -> str:
    """The name of the record that says whether a node is gone for good."""
    return f"{_REMOVED}{node}"


class Declared:
    """Follows the declarations as they are committed; `boot` reads those of earlier lives."""

    def __init__(self, ctx: Context, members: Membership) -> None:
        self.ctx = ctx
        self.members = members

    def boot(self) -> None:
        """Before anybody is dialled: whoever was removed stays so."""
        nodes = {member.node for member in self.ctx.catalogue.members()} | set(self.ctx.fleet.hosts)
        for node in sorted(nodes):
            if self._says_removed(node):
                self.members.removed[node] = None

    def heard(self, record: Record) -> bool:
        """A record was committed. Returns whether it changes what counts as a copy."""
        if record.name.startswith(_REVOKED) and record.state is State.LIVE:
            self._revoked(record.name.removeprefix(_REVOKED), record)
        elif record.name.startswith(_REMOVED):
            return self._removed(record.name.removeprefix(_REMOVED), record)
        return False

    def _revoked(self, node: NodeId, record: Record) -> None:
        self.ctx.report("warning", "revoked", f"the certificate of {node} is revoked by {record.origin}")
        if node in self.members.sessions:
            self.ctx.emit(Hangup(node, "its certificate is revoked"))

    def _removed(self, node: NodeId, record: Record) -> bool:
        removed = self._says_removed(node)
        if removed == (node in self.members.removed):
            return False
        if removed:
            self.ctx.report("warning", "removed", f"{node} was removed by {record.origin}: it is gone for good")
            self.members.remove(node)
        else:
            self.ctx.report("info", "readmitted", f"{node} has joined anew")
            self.members.readmit(node)
        return True

    def _says_removed(self, node: NodeId) -> bool:
        current = self.ctx.current(removed_name(node))
        return current is not None and current.state is State.LIVE and dict(current.meta).get("removed") == 1
