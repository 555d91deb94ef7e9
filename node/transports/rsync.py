"""`rsync` over SSH, from a node whose own port cannot be reached while its SSH can.

Two programs, one after the other. `spore lend DIGEST` runs over there: its agent says in which file the bytes lie,
sets a share of its egress budget aside, and tells the chunk list; we believe the list only if it hashes to the digest.
Then `rsync` brings the file, at the rate that was set aside, beginning from what staging has verified already.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from node.breakers import Guards
from node.bulk_stream import sentence_of
from node.progress import CONNECTING, NETWORK
from node.transports.choice import RSYNC
from node.transports.order import Kit, Order
from node.transports.programs import Program, ProgramFailed, lacking
from node.transports.scratch import Scratch, ScratchRefused, absorb, prepare, scratch_for
from node.transports.ssh import ALIAS, CONFIG, configure, reach
from protocol.chunks import CHUNK_BYTES, split_leaves
from protocol.values import NodeId
from storage.refusals import StoreError, WrongBytes

LEND_SECONDS = 60.0  # the peer may have to hash the file for its chunk list: then it says that it works
STALL_SECONDS = 60.0  # without a byte: ssh has its own limit of 30 s for a host that does not answer
PARTIAL = "partial"  # rsync's --partial-dir, below the folder of the order


class Rsync:
    """Pulls over SSH, one source at a time."""

    def __init__(self, kit: Kit, guards: Guards | None = None) -> None:
        self._kit = kit
        self._guards = guards or Guards()

    def missing(self) -> str:
        return lacking("rsync", "ssh")

    def fetch(self, order: Order, nodes: tuple[NodeId, ...]) -> str:
        reasons = []
        for node in nodes:
            why = self._guards.admits(node, RSYNC)
            if not why:
                why = self._from(order, node)
                if not why:
                    return ""
            reasons.append(why)
        return sentence_of("; ".join(reasons) or "no host is reached by SSH")

    def _from(self, order: Order, node: NodeId) -> str:
        order.meter.enter(CONNECTING)
        try:
            with scratch_for(self._kit, order) as scratch:
                configure(reach(self._kit.fleet().host(node), self._kit.identity.parent), scratch.folder)
                loan = self._borrow(order, node, scratch)
                self._pull(order, loan, scratch)
                self._guards.succeeded(node, RSYNC)
                return self._judged(order, node, absorb(self._kit, order, scratch))
        except (ProgramFailed, ValueError) as problem:
            self._guards.failed(node, RSYNC, sentence_of(problem))
            return f"{node} over rsync: {problem}"
        except (ScratchRefused, StoreError, OSError) as problem:
            return sentence_of(problem)

    def _judged(self, order: Order, node: NodeId, why: str) -> str:
        """What came and was not what its digest says is told of, as for every source."""
        if "digests say" in why:
            self._kit.on_wrong_bytes(node, order.record.digest, f"{node} sent wrong bytes over rsync: {why}")
        return why

    def _borrow(self, order: Order, node: NodeId, scratch: Scratch) -> dict[str, Any]:
        """Ask the agent over there where the bytes lie. Raises ProgramFailed, ValueError."""
        ssh = reach(self._kit.fleet().host(node), self._kit.identity.parent).ssh
        words = [*shlex.split(ssh.command), "lend", order.record.digest.hex(), "--to", self._kit.node, "--json"]
        words += ["--priority", order.fetch.priority, *(["--dir", ssh.dir] if ssh.dir else [])]
        arguments = ["ssh", "-F", CONFIG, ALIAS, "--", shlex.join(words)]  # sshd gives it to a shell: quoted for that
        with Program(arguments, order.job, scratch.folder) as program:
            answer = program.wait(LEND_SECONDS)
        try:
            rows = [json.loads(line) for line in answer.splitlines() if line.startswith(b"{")]
            loan = {key: value for row in rows[:1] for key, value in row.items()}
            if loan["size"] != order.record.size or not str(loan["path"]).startswith("/"):
                raise ValueError(f"{node} lends another file than the one asked for")
            self._learn_list(order, rows[1:])
            return loan
        except (KeyError, TypeError, json.JSONDecodeError) as problem:
            raise ProgramFailed(f"{node} answered `lend` in a way that is not understood: {problem!r}") from problem

    def _learn_list(self, order: Order, rows: list[dict[str, Any]]) -> None:
        partial = self._kit.depot.partial(order.record)
        try:
            if not partial.leaves_known and order.record.size > CHUNK_BYTES:
                partial.set_leaves(split_leaves(b"".join(bytes.fromhex(row["leaves"]) for row in rows)))
        except WrongBytes as problem:
            raise ProgramFailed(f"the chunk list that came over SSH is wrong: {problem}") from problem
        finally:
            partial.close()

    def _pull(self, order: Order, loan: dict[str, Any], scratch: Scratch) -> None:
        prepare(self._kit, order, scratch.folder / PARTIAL / scratch.file.name)
        order.meter.enter(NETWORK)
        arguments = ["rsync", *_options(loan), "--", f"{ALIAS}:{loan['path']}", scratch.file.name]
        got = _growth(order, scratch)
        with Program(arguments, order.job, scratch.folder) as program:
            try:
                program.wait(STALL_SECONDS, lambda: next(got))
            except ProgramFailed:
                self._keep_partial(order, scratch)
                raise

    def _keep_partial(self, order: Order, scratch: Scratch) -> None:
        """A transfer that broke off: whatever came and verifies stays in staging."""
        found = scratch.folder / PARTIAL / scratch.file.name
        if found.is_file() and not scratch.file.exists():
            found.rename(scratch.file)
            absorb(self._kit, order, scratch)


def _options(loan: dict[str, Any]) -> list[str]:
    rate = loan.get("bytes_per_second")
    limit = [f"--bwlimit={max(1, int(rate) // 1024)}"] if rate else []  # KiB/s; 0 would mean none
    return [
        "--rsh", f"ssh -F {CONFIG}",
        "-s",  # the path goes over the connection, past the shell over there
        f"--partial-dir={PARTIAL}", "--no-whole-file", "--ignore-times",
        "--chmod=u=rw,go=", f"--timeout={int(STALL_SECONDS)}", "--quiet", *limit,
    ]  # fmt: skip


def _growth(order: Order, scratch: Scratch) -> Iterator[bool]:
    """At each step: whether more has been written; the meter follows."""
    seen = scratch.size()
    while True:
        now = scratch.size()
        grown = max(0, now - seen)
        if grown:
            order.meter.moved(grown)
        seen = max(seen, now)
        yield bool(grown)
