"""A door for tests of the local socket: artifacts in a dictionary, and switches for everything that can go wrong."""

import asyncio
import fnmatch
from collections.abc import AsyncIterator
from typing import Any

from node.door import EXIT_USAGE, DoorError, Facts, PutRequest, WaitRequest
from protocol.chunks import digest_of

NODE = "node-a"
BLOCK_BYTES = 100_000  # of a `get`; not the size of any buffer on the way


class FakeDoor:
    """Implements `node.door.Door`. Kinds are `model` and, per node, `game`."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.modes: dict[str, int] = {}
        self.copies: dict[str, int] = {}
        self.puts: list[PutRequest] = []
        self.calls: list[tuple[str, Any]] = []
        self.cancelled: list[str] = []
        self.gate = asyncio.Event()  # closed, puts and waits stay in flight
        self.gate.set()
        self.in_flight = self.in_flight_max = 0
        self.reads: int | None = None  # how many blocks of a large put are taken before the gate
        self.get_breaks_after: int | None = None  # bytes of a `get` after which the file changes
        self.wrong_bytes = False
        self.safe = True  # whether a drain succeeds
        self.delivered = 0  # how often a broadcast was looked at: at the second time all have it
        self.fault: Exception | None = None  # raised by whatever is asked next
        self.verify_rows: list[Facts] = [
            {"done": 1, "total": 2, "bytes": 10, "bytes_total": 20},
            {"result": True, "checked": 2, "bytes": 20, "damaged": []},
        ]

    def _enter(self, command: str, argument: Any = None) -> None:
        self.calls.append((command, argument))
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault

    def _named(self, name: str) -> bytes:
        if name not in self.held:
            raise DoorError(f"there is no artifact {name}; `spore ls` shows what there is")
        return self.held[name]

    async def sync(self, glob: str | None, to: str, priority: str, timeout_seconds: float) -> AsyncIterator[Facts]:
        self._enter("sync", (glob, to, priority, timeout_seconds))
        yield {"done": 0, "total": 2, "bytes": 0, "bytes_total": 20, "why": "model/a: waiting for its turn"}
        left = [{"name": "model/b", "size": 10, "why": "node-b: node-b is excluded from sync"}] if to else []
        sums = {"moved": 1, "moved_bytes": 10, "there": 1 - len(left), "there_bytes": 10 - 10 * len(left)}
        yield {"result": True, **sums, "left": left, "left_count": len(left)}

    async def lend(self, digest: str, to: str, priority: str) -> AsyncIterator[Facts]:
        self._enter("lend", (digest, to, priority))
        yield {"path": f"/srv/{digest}", "size": 1, "bytes_per_second": None}

    async def limit(self, node: str, rate: str) -> list[Facts]:
        self._enter("limit", (node, rate))
        return [{"egress": f"to {node}" if node else f"all of {NODE}", "bytes_per_second": None, "by": "spore limit"}]

    async def _wait_at_gate(self, what: str) -> None:
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(what)
            raise
        finally:
            self.in_flight -= 1

    async def put(self, request: PutRequest, content: bytes | AsyncIterator[bytes]) -> Facts:
        self.puts.append(request)
        self._enter("put", request)
        if request.kind not in ("model", "game"):
            raise DoorError(f"there is no kind {request.kind!r}; use one of game, model", EXIT_USAGE)
        if isinstance(content, bytes):
            await self._wait_at_gate(request.name)
            whole = content
        else:
            whole = await self._gather(request, content)
        name = f"game/{NODE}/{request.name}" if request.kind == "game" else f"model/{request.name}"
        self.held[name], self.modes[name] = whole, request.mode
        self.copies[name] = 1 + request.wait_copies
        digest, _ = digest_of(whole)
        return {
            "name": name,
            "digest": digest.hex(),
            "size": len(whole),
            "kind": request.kind,
            "copies": self.copies[name],
        }

    async def _gather(self, request: PutRequest, content: AsyncIterator[bytes]) -> bytes:
        blocks = []
        async for block in content:
            blocks.append(block)
            if self.reads is not None and len(blocks) >= self.reads:
                await self._wait_at_gate(request.name)
        return b"".join(blocks)

    async def get(self, name: str) -> tuple[Facts, AsyncIterator[bytes]]:
        self._enter("get", name)
        content = self._named(name)
        digest, plain = digest_of(content)
        facts = {
            "name": name,
            "digest": digest.hex(),
            "blake3": plain.hex(),
            "size": len(content),
            "mode": self.modes[name],
        }
        return facts, self._blocks(content)

    async def _blocks(self, content: bytes) -> AsyncIterator[bytes]:
        if self.wrong_bytes:
            content = bytes(len(content))
        for start in range(0, len(content), BLOCK_BYTES):
            if self.get_breaks_after is not None and start >= self.get_breaks_after:
                raise DoorError("the file changed while it was read; it is being checked, try once more")
            yield content[start : start + BLOCK_BYTES]
            await self.gate.wait()

    async def ls(self, glob: str | None) -> AsyncIterator[Facts]:
        self._enter("ls", glob)
        for name, content in sorted(self.held.items()):
            if glob is None or fnmatch.fnmatch(name, glob):
                yield {
                    "name": name,
                    "kind": name.partition("/")[0],
                    "digest": digest_of(content)[0].hex(),
                    "size": len(content),
                    "origin": NODE,
                    "state": "live",
                    "copies": self.copies[name],
                }

    async def where(self, name: str) -> Facts:
        self._enter("where", name)
        content = self._named(name)
        digest, plain = digest_of(content)
        holder = {
            "node": NODE,
            "store": "5e" * 16,
            "domain": "nebius/eu",
            "state": "alive",
            "verified_at": 1_700_000_000_000,
        }
        return {
            "name": name,
            "digest": digest.hex(),
            "blake3": plain.hex(),
            "size": len(content),
            "version": 1_700_000_000_000 << 16,
            "versions": 1,
            "origin": NODE,
            "copies": self.copies[name],
            "durable": self.copies[name] > 2,
            "holders": [holder],
        }

    async def rm(self, name: str) -> Facts:
        self._enter("rm", name)
        self._named(name)
        del self.held[name]
        return {"name": name, "state": "deleted"}

    async def status(self, cluster: bool) -> Facts:
        self._enter("status", cluster)
        size = sum(map(len, self.held.values()))
        facts: Facts = {
            "node": NODE,
            "cluster": "fleet",
            "role": "worker",
            "ephemeral": False,
            "excluded": False,
            "uptime_seconds": 12.5,
            "artifacts": len(self.held),
            "bytes": size,
            "kinds": {"model": {"artifacts": len(self.held), "bytes": size}},
            "at_risk": {"artifacts": 1, "bytes": 10},
            "disk": {"used_percent": 41.0, "cap_percent": 70.0, "accepting": True},
            "members": {"alive": 3, "suspect": 0, "down": 1},
            "healthy": True,
        }
        if cluster:
            facts["cluster_members"] = await self.peers()
        return facts

    async def peers(self) -> list[Facts]:
        self._enter("peers")
        return [
            {
                "node": "node-b",
                "address": "10.0.0.2:7946",
                "state": "alive",
                "role": "training",
                "provider": "nebius",
                "domain": "nebius/eu",
                "rtt_ms": 0.41,
                "ephemeral": False,
                "accepting": True,
                "at_risk_bytes": 0,
                "policy": "same",
            }
        ]

    async def events(self, follow: bool) -> AsyncIterator[Facts]:
        self._enter("events", follow)
        for number in range(2):
            yield {
                "at": 1_790_000_000.0 + number,
                "level": "info",
                "event": "peer_up",
                "message": f"node-{number} is up",
            }
        if follow:
            await asyncio.Event().wait()

    async def risk(self, cluster: bool) -> list[Facts]:
        self._enter("risk", cluster)
        return [
            {
                "name": name,
                "digest": digest_of(content)[0].hex(),
                "size": len(content),
                "copies": 0,
                "needed": 2,
                "why": "being sent to node-b",
            }
            for name, content in sorted(self.held.items())
        ]

    async def wait(self, request: WaitRequest) -> Facts:
        self._enter("wait", request)
        content = self._named(request.name)
        await self._wait_at_gate(request.name)
        if self.copies[request.name] < request.copies:
            raise DoorError(f"{request.name} has {self.copies[request.name]} of {request.copies} copies in time")
        digest = digest_of(content)[0].hex()
        return {"name": request.name, "digest": digest, "copies": self.copies[request.name], "durable": True}

    async def flush(self, deadline_seconds: float) -> Facts:
        self._enter("flush", deadline_seconds)
        await self._wait_at_gate("flush")
        return {"durable": not self.held, "at_risk": {"artifacts": len(self.held), "bytes": 10}, "why": ""}

    async def verify(self, rebuild: bool) -> AsyncIterator[Facts]:
        self._enter("verify", rebuild)
        for row in self.verify_rows:
            yield row

    async def token(self, ttl_seconds: float, uses: int, ephemeral: bool) -> Facts:
        self._enter("token", (ttl_seconds, uses, ephemeral))
        return {"token": "spore1-word", "expires_at": 1_700_000_000.0, "uses": uses, "ephemeral": ephemeral}

    async def revoke(self, node: str) -> Facts:
        self._enter("revoke", node)
        return {"node": node, "revoked_at": 1_700_000_000}

    async def renew(self) -> Facts:
        self._enter("renew")
        return {"node": NODE, "not_after": 1_700_000_000, "signing": "ab", "certificate": "ab", "authorities": []}

    async def remove(self, node: str) -> Facts:
        self._enter("remove", node)
        return {"node": node, "removed": True, "revoked_at": 1_700_000_000}

    async def drain(self, copies: int, deadline_seconds: float, undo: bool) -> Facts:
        self._enter("drain", (copies, deadline_seconds, undo))
        why = "" if self.safe else "3 artifacts or more depend on this node"
        return {"safe": self.safe, "draining": not undo, "at_risk": {"artifacts": 0, "bytes": 0}, "why": why}

    async def progress(self, name: str) -> Facts:
        self._enter("progress", name)
        self._named(name)
        return {
            "name": name,
            "copies": 0,
            "needed": 2,
            "why": "being sent to node-b",
            "bytes_done": 5,
            "bytes_total": 10,
            "transfers": [],
        }

    async def plan(self, name: str) -> Facts:
        self._enter("plan", name)
        self._named(name)
        place = {"node": NODE, "store": "00" * 16, "domain": "x", "role": "worker"}
        holder = {**place, "counts": True, "holds": True, "why": "it lasts"}
        return {
            "name": name, "kind": "model", "strategy": "hybrid", "copies": 1, "domains": 1, "enough": True,
            "holders": [holder], "others": [{"node": "node-b", "why": "it is down"}],
        }  # fmt: skip

    async def broadcast(self, name: str) -> Facts:
        self._enter("broadcast", name)
        return self._delivery(name)

    async def delivery(self, name: str) -> Facts:
        self._enter("delivery", name)
        self.delivered += 1
        return self._delivery(name)

    def _delivery(self, name: str) -> Facts:
        self._named(name)
        done = self.delivered >= 2
        rest = {"state": "delivered", "seconds": 2.0} if done else {"state": "fetching", "seconds": None}
        return {
            "name": name, "digest": "00" * 32, "size": 100, "receivers": 2, "delivered": 1 + done, "done": done,
            "seconds": 2.0, "bound_seconds": 1.0, "limited_by": "the uplink of node-a, 50 MB/s",
            "last": "" if done else "node-c",
            "nodes": [
                {"node": "node-b", "state": "delivered", "bytes_done": 100, "seconds": 1.5, "why": ""},
                {"node": "node-c", "bytes_done": 100 if done else 50, "why": "", **rest},
                {"node": "node-d", "state": "skipped", "bytes_done": 0, "seconds": None, "why": "it is down"},
            ],
        }  # fmt: skip

    async def pin(self, name: str, node: str, pinned: bool) -> Facts:
        self._enter("pin", (name, node, pinned))
        return {"name": name, "node": node or NODE, "pinned": pinned}

    async def age(self, glob: str | None) -> list[Facts]:
        self._enter("age", glob)
        facts = {"kind": "model", "name": "model/a", "version_at": 5.0, "age_seconds": 60.0, "copies": 1, "needed": 2}
        return [{"prefix": "model/", **facts, "stale": ["node-b"]}]

    async def recommend(self) -> list[Facts]:
        self._enter("recommend")
        return [{"action": "copy", "name": "model/a", "from": NODE, "to": "node-b", "why": "x", "by_itself": True}]

    async def expire(self, glob: str, older_seconds: float) -> Facts:
        self._enter("expire", (glob, older_seconds))
        names = [name for name in self.held if fnmatch.fnmatchcase(name, glob)]
        for name in names:
            del self.held[name]
        return {"removed": len(names), "refused": []}
