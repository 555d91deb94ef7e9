"""The users of a simulated fleet: what they put, change, remove and wait for, drawn from the seed.

They obey one rule that the oracle needs: nobody destroys by hand the last copies of what was promised, unless the
artifact was accepted by reference, where a change before it is durable is an announced loss.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from random import Random

from protocol.effects import Inline, Kept, Source
from protocol.events import Await, Flush, Put, Remove
from protocol.fleet import MIB, is_reserved
from protocol.values import Digest, NodeId
from simulations.driver import SimNode
from simulations.options import Options
from simulations.oracle import Request
from simulations.surroundings import Surroundings
from simulations.watching import INLINE_BYTES_MAX

NAMES = 12  # few, so that names get several versions from several nodes
COPY_BYTES_MAX = 64 * MIB
WAIT_MS_MAX = 30_000
PATHS = ("models/{}.pth", "training/{}.npz", "checkpoints/{}")
KINDS = ("model", "npz", "checkpoint")


class Clients:
    """Draws operations and performs them on nodes that are up (and on the disks of those that are not)."""

    def __init__(self, around: Surroundings, nodes: dict[NodeId, SimNode], options: Options, seed: int) -> None:
        self.around = around
        self.nodes = nodes
        self.options = options
        self.random = Random(f"{seed}/clients")
        self.seed = seed
        self.put: list[tuple[str, Digest, int]] = []
        self.last_ms = 0
        self._contents = 0
        first = 0 if options.broadcasts else 1  # models are the kind that goes to every node
        self._kinds, self._paths = KINDS[first:], PATHS[first:]

    def schedule(self) -> None:
        for _ in range(self.options.operations):
            self.around.schedule.after(self.random.randint(500, self.options.busy_ms), self._operate)

    def _operate(self) -> None:
        self.last_ms = self.around.schedule.now_ms
        operations = (
            (self._put, 30),
            (self._write, 30),
            (self._put_again, 6),
            (self._await, 10),
            (self._change, 8),
            (self._remove_file, 5),
            (self._remove, self.options.deletes),
            (self._flush, 2),
        )
        acts = [act for act, _ in operations]
        self.random.choices(acts, weights=[weight for _, weight in operations])[0]()

    # --- content ---

    def _content(self) -> tuple[Digest, int]:
        self._contents += 1
        digest = blake2b(f"{self.seed}/{self._contents}".encode(), digest_size=32).digest()
        if self.random.random() >= self.options.large_share:
            return digest, self.random.randint(0, 1 << 20)
        if self.random.random() < 0.2:
            return digest, self.random.randint(COPY_BYTES_MAX + 1, 3 * COPY_BYTES_MAX)
        return digest, self.random.randint(1 << 20, COPY_BYTES_MAX)

    def _node(self) -> SimNode | None:
        """Any node that is up; users of a dead one go away."""
        up = [self.nodes[name] for name in sorted(self.nodes) if self.nodes[name].up]
        return self.random.choice(up) if up else None

    def _name(self, node: SimNode) -> str:
        index = self.random.randrange(NAMES)
        if self.random.random() < 0.2:
            return f"game/{node.name}/games/g{index}.db"
        kind = self.random.choice(self._kinds)
        folder = "common" if self.random.random() < 0.1 else kind  # names of two kinds may share a path
        return f"{kind}/{folder}/{index}"

    # --- puts ---

    def _put(self) -> None:
        node = self._node()
        if node is not None:
            digest, size = self._content()
            self._put_bytes(node, self._name(node), digest, min(size, COPY_BYTES_MAX))

    def _put_again(self) -> None:
        """The same bytes once more: under the same name from another node, or under another name."""
        node = self._node()
        if node is None or not self.put:
            return
        name, digest, size = self.random.choice(self.put)
        if name.startswith("game/") or self.random.random() < 0.5:
            name = self._name(node)
        self.around.bites["put_again"] = self.around.bites.get("put_again", 0) + 1
        self._put_bytes(node, name, digest, size)

    def _put_bytes(self, node: SimNode, name: str, digest: Digest, size: int) -> None:
        self.put.append((name, digest, size))
        copies = self.random.choice((0, 0, 0, 1, 2))
        deadline = node.clock_ms() + WAIT_MS_MAX if copies else 0
        request = self.around.oracle.ask(
            Request(node.name, "put", name, digest, copies, self.around.schedule.now_ms + WAIT_MS_MAX)
        )
        source: Source = Inline(digest)
        if size > INLINE_BYTES_MAX:
            source = Kept(node.depot.keep(digest, size, self.around.schedule.now_ms))
        meta = (("later", 1),) if node.newer else ()  # what a later version adds, older ones carry along
        put = Put(request, name, digest, digest, size, 0o644, source, meta=meta)
        node.handle(replace(put, wait_copies=copies, deadline_ms=deadline))

    def _write(self) -> None:
        """A program closes a file in the watched folder; the agent may be down at that moment."""
        living = [node for name, node in sorted(self.nodes.items()) if not node.gone]
        node = self.random.choice(living)
        path = self.random.choice(self._paths).format(f"w{self.random.randrange(NAMES)}")
        if self._may_destroy(node, path):
            digest, size = self._content()
            node.watching.user_writes(path, digest, size)

    # --- changes ---

    def _change(self) -> None:
        self._touch(remove=False)

    def _remove_file(self) -> None:
        self._touch(remove=True)

    def _touch(self, remove: bool) -> None:
        """A user changes or removes a file that is there, their own or one that was published."""
        living = [node for name, node in sorted(self.nodes.items()) if not node.gone and node.store.files]
        if not living:
            return
        node = self.random.choice(living)
        paths = [path for path in sorted(node.store.files) if not is_reserved(path)]
        if not paths:
            return
        path = self.random.choice(paths)
        if not self._may_destroy(node, path):
            return
        if remove:
            self.around.bites["user_removed"] = self.around.bites.get("user_removed", 0) + 1
            node.watching.user_removes(path)
        else:
            self.around.bites["user_changed"] = self.around.bites.get("user_changed", 0) + 1
            digest, size = self._content()
            node.watching.user_writes(path, digest, min(size, 1 << 20))

    def _may_destroy(self, node: SimNode, path: str) -> bool:
        file = node.store.files.get(path)
        if file is None:
            return True
        if file.synced_by:
            return False
        others = [
            store
            for store in self.around.oracle.distinct_stores()
            if store is not node.store and not store.ephemeral and store.holds(file.digest)
        ]
        protected = [
            entry
            for entry in node.disk.pending()
            if entry.record.digest == file.digest and isinstance(entry.source, (Inline, Kept))
        ]
        unaccepted = not self.around.oracle.required(file.digest)
        referenced = any(promise.referenced for promise in self.around.oracle.promised(file.digest))
        return len(others) >= 2 or bool(protected) or unaccepted or (referenced and self.random.random() < 0.3)

    def _remove(self) -> None:
        """An explicit delete of a name."""
        node = self._node()
        names = sorted(self.around.oracle.by_name)
        if node is None or not names:
            return
        name = self.random.choice(names)
        request = self.around.oracle.ask(Request(node.name, "remove", name, None))
        node.handle(Remove(request, name))

    # --- waits ---

    def _await(self) -> None:
        node = self._node()
        names = sorted(self.around.oracle.by_name)
        if node is None or not names:
            return
        name = self.random.choice(names)
        copies = self.random.choice((1, 2))
        now = self.around.schedule.now_ms
        request = self.around.oracle.ask(Request(node.name, "await", name, None, copies, now + WAIT_MS_MAX))
        node.handle(Await(request, name, copies, 0, node.clock_ms() + WAIT_MS_MAX))

    def _flush(self) -> None:
        node = self._node()
        if node is not None:
            now = self.around.schedule.now_ms
            request = self.around.oracle.ask(Request(node.name, "flush", "", None, 0, now + 8_000))
            node.handle(Flush(request, node.clock_ms() + 8_000, leave=False))
