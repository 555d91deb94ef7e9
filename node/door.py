"""What the agent offers on its local socket: the methods, their arguments and their errors.

`node/admin.py` reads requests and calls these; the agent implements them; tests put a fake in its place. Results are
plain dictionaries with the stable JSON fields of docs/commands.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

Facts = dict[str, Any]

EXIT_NOT_ACHIEVED = 1  # time-out, not durable, damage
EXIT_USAGE = 2  # wrong usage or configuration


class DoorError(Exception):
    """A request that cannot be done: one sentence for the user, and the exit code of the command."""

    def __init__(self, sentence: str, exit_code: int = EXIT_NOT_ACHIEVED) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class PutRequest:
    """One artifact from the CLI. `name` is the path part (the kind, and for per-node kinds the node, come before
    it)."""

    kind: str
    name: str
    size: int
    mode: int = 0o644
    wait_copies: int = 0  # 0: answer when accepted
    domains: int = 0
    timeout_seconds: float = 0.0  # 0: wait for ever
    origin: str = ""  # adopted: accepted by this node, which is gone; `name` is the whole name then
    hlc: int = 0  # and stamped by it
    digest: str = ""  # in hex: what the bytes must be
    meta: str = ""  # JSON, a list of pairs


@dataclass(frozen=True, slots=True)
class WaitRequest:
    name: str
    copies: int
    domains: int = 0
    timeout_seconds: float = 0.0


class Door(Protocol):
    """Every method may raise `DoorError`. A cancelled task cancels the request."""

    async def put(self, request: PutRequest, content: bytes | AsyncIterator[bytes]) -> Facts: ...

    async def get(self, name: str) -> tuple[Facts, AsyncIterator[bytes]]:
        """Facts (name, digest, blake3, size, mode) and the verified bytes."""
        ...

    def ls(self, glob: str | None) -> AsyncIterator[Facts]: ...

    async def where(self, name: str) -> Facts: ...

    async def rm(self, name: str) -> Facts: ...

    async def status(self, cluster: bool) -> Facts: ...

    async def peers(self) -> list[Facts]: ...

    async def risk(self, cluster: bool) -> list[Facts]: ...

    def events(self, follow: bool) -> AsyncIterator[Facts]:
        """What the agent reported lately (`at`, `level`, `event`, `message`), oldest first; then what comes."""
        ...

    async def wait(self, request: WaitRequest) -> Facts: ...

    async def flush(self, deadline_seconds: float) -> Facts: ...

    def verify(self, rebuild: bool) -> AsyncIterator[Facts]:
        """Progress (`done`, `total`, `bytes`), then one result with `"result": true`."""
        ...

    async def token(self, ttl_seconds: float, uses: int, ephemeral: bool) -> Facts: ...

    async def revoke(self, node: str) -> Facts: ...

    async def renew(self) -> Facts:
        """The next certificate, and the authorities that the issuer trusts, now."""
        ...

    async def remove(self, node: str) -> Facts:
        """The node is gone for good: nothing is expected of it, and what it held is no copy any more."""
        ...

    async def drain(self, copies: int, deadline_seconds: float, undo: bool) -> Facts:
        """Accept nothing more, and see to it that `copies` (0: as policy says) of all that is here lie elsewhere."""
        ...

    def sync(self, glob: str | None, to: str, priority: str, timeout_seconds: float) -> AsyncIterator[Facts]:
        """Progress, then one result with `"result": true`."""
        ...

    def lend(self, digest: str, to: str, priority: str) -> AsyncIterator[Facts]:
        """Where these bytes lie, for an rsync of a node that cannot reach our port: `path`, `size`,
        `bytes_per_second`; then the chunk list in pages, `leaves`."""
        ...

    async def limit(self, node: str, rate: str) -> list[Facts]:
        """Set an egress budget (`rate` as people write it, `default`, or nothing to set none); those in force."""
        ...

    async def progress(self, name: str) -> Facts:
        """How far the pushes of an artifact are: bytes done and total, rate, and why it stalls."""
        ...

    async def broadcast(self, name: str) -> Facts:
        """Let every eligible node hold the newest version of a name; then as `delivery`."""
        ...

    async def delivery(self, name: str) -> Facts:
        """Where the newest version of a name has arrived, how far it is elsewhere, and who is left out, and why."""
        ...

    async def plan(self, name: str) -> Facts:
        """Who should hold the newest version of a name, in order, and of every other node why not."""
        ...

    async def pin(self, name: str, node: str, pinned: bool) -> Facts:
        """Keep a copy of a name on a node ("": this one), whatever strategy and role say; or no longer."""
        ...

    async def age(self, glob: str | None) -> list[Facts]:
        """The newest version of each kind and of each prefix below it: how old it is, and where it is missing."""
        ...

    async def recommend(self) -> list[Facts]:
        """What should move where, or be changed, and why."""
        ...

    async def expire(self, glob: str, older_seconds: float) -> Facts:
        """Delete every name that matches and whose newest version is older than this."""
        ...
