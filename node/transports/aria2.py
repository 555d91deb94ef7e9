"""`aria2c`, for what is large and lies on several nodes that are reached: one process for an order, driven by its RPC.

It fetches `/v1/blob/{digest}` from all of them at once with our client certificate; each of them paces itself by its
own budget. aria2 compares a server's certificate with a host name, which nodes do not have, so it believes any server:
whoever answers gets no secret from us, and what it sends counts only once it is hashed again.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from node.bulk_stream import sentence_of
from node.fetching import Fetching
from node.progress import CONNECTING, NETWORK
from node.throttle import PRIORITY_HEADER
from node.transports.order import Kit, Order
from node.transports.programs import LOOK_SECONDS, Program, ProgramFailed, lacking
from node.transports.scratch import FILE, Scratch, ScratchRefused, absorb, scratch_for
from protocol.values import NodeId
from storage.refusals import StoreError

START_SECONDS = 10.0  # until its RPC answers
STALL_SECONDS = 60.0  # without a byte from any source
SOURCES_MAX = 8  # connections in all: more would only move the bottleneck to our disk
CONFIG = "aria2.conf"


class Aria2:
    """One `aria2c` for each order; it ends with it."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit

    def missing(self) -> str:
        return lacking("aria2c")

    def fetch(self, order: Order, nodes: tuple[NodeId, ...]) -> str:
        order.meter.enter(CONNECTING)
        kit = self._kit
        why = Fetching(
            order.record, nodes, kit.depot, kit.connections, order.meter, order.job, kit.on_wrong_bytes
        ).learn_list()
        if why:
            return why
        try:
            with scratch_for(kit, order) as scratch:
                self._download(order, nodes, scratch)
                return absorb(kit, order, scratch)
        except ProgramFailed as problem:
            return sentence_of(problem)
        except (ScratchRefused, StoreError, OSError) as problem:
            return sentence_of(problem)

    def _download(self, order: Order, nodes: tuple[NodeId, ...], scratch: Scratch) -> None:
        """Fetch the file. Raises ProgramFailed."""
        addresses = [address for node in nodes[:SOURCES_MAX] if (address := self._kit.address_of(node))]
        urls = [f"https://{address}/v1/blob/{order.record.digest.hex()}" for address in addresses]
        rpc = _Rpc(_free_port(), secrets.token_urlsafe(24))
        self._configure(order, scratch.folder, rpc, len(urls))
        with Program(["aria2c", f"--conf-path={CONFIG}"], order.job, scratch.folder) as program:
            rpc.until_up(program, order)
            number = rpc.call("addUri", urls, {"out": FILE})
            order.meter.enter(NETWORK)
            self._follow(order, rpc, number, program)

    def _configure(self, order: Order, folder: Path, rpc: _Rpc, count: int) -> None:
        """Its options, in a file that nobody else reads: the RPC's secret is among them."""
        identity = self._kit.identity
        options: dict[str, object] = {
            "dir": folder,
            "enable-rpc": "true",
            "rpc-listen-port": rpc.port,
            "rpc-secret": rpc.secret,
            "stop-with-process": os.getpid(),
            "ca-certificate": identity / "ca.pem",
            "certificate": identity / "node.pem",
            "private-key": identity / "node.key",
            "check-certificate": "false",
            "header": f"{PRIORITY_HEADER}: {order.fetch.priority}",
            "split": count,
            "max-connection-per-server": 1,
            "min-split-size": "4M",
            "file-allocation": "none",
            "allow-overwrite": "true",
            "auto-file-renaming": "false",
            "connect-timeout": 5,
            "timeout": 30,
            "max-tries": 2,
            "retry-wait": 1,
            "no-netrc": "true",
            "async-dns": "false",
            "quiet": "true",
        }
        path = folder / CONFIG
        path.touch(mode=0o600)
        path.write_text("".join(f"{name}={value}\n" for name, value in options.items()))

    def _follow(self, order: Order, rpc: _Rpc, number: str, program: Program) -> None:
        """Until the download is complete. Raises ProgramFailed, Cancelled."""
        before, moved_at = 0, time.monotonic()
        while True:
            order.job.go_on()
            told = rpc.call("tellStatus", number, ["status", "completedLength", "errorMessage"])
            done = int(told["completedLength"])
            if done > before:
                order.meter.moved(done - before)
                before, moved_at = done, time.monotonic()
            if told["status"] == "complete":
                return
            if told["status"] in ("error", "removed"):
                raise ProgramFailed(f"aria2c gave up: {told.get('errorMessage') or program.last_words()}")
            if time.monotonic() - moved_at > STALL_SECONDS:
                raise ProgramFailed(f"aria2c made no progress for {STALL_SECONDS:.0f} s and was ended")
            time.sleep(LOOK_SECONDS)


class _Rpc:
    """aria2's JSON-RPC on loopback."""

    def __init__(self, port: int, secret: str) -> None:
        self.port = port
        self.secret = secret

    def call(self, method: str, *arguments: object) -> Any:
        """The result. Raises ProgramFailed."""
        params = [f"token:{self.secret}", *arguments]
        body = json.dumps({"jsonrpc": "2.0", "id": "spore", "method": f"aria2.{method}", "params": params})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)
        try:
            with contextlib.closing(connection):
                connection.request("POST", "/jsonrpc", body, {"Content-Type": "application/json"})
                answer = json.loads(connection.getresponse().read(1 << 20))
            return answer["result"]
        except (OSError, ValueError, http.client.HTTPException) as problem:
            raise ProgramFailed(f"aria2c does not answer: {problem}") from problem
        except (KeyError, TypeError):
            raise ProgramFailed(f"aria2c refused {method}: {sentence_of(answer)}") from None

    def until_up(self, program: Program, order: Order) -> None:
        until = time.monotonic() + START_SECONDS
        while True:
            order.job.go_on()
            try:
                self.call("getVersion")
                return
            except ProgramFailed:
                if program.process.poll() is not None or time.monotonic() > until:
                    raise ProgramFailed(f"aria2c did not start: {program.last_words()}") from None
            time.sleep(LOOK_SECONDS / 4)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
