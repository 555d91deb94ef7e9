"""Any interleaving of sources, failures and restarts ends in the right bytes or in a clear failure.

The sources are scripts: what each connection to them does is drawn by hypothesis. Staging, chunk maps, comparison with
an older version and publication are the real ones, on a real disk; a restart forgets everything that is not on it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.blocks import _RUN, hints_length, runs_length
from node.breakers import Guards
from node.bulk_client import Avoided, Job
from node.bulk_http import Head
from node.bulk_stream import Patience, StreamBroken
from node.fetching import Fetching
from node.progress import Meter
from node.speeds import Speeds
from protocol.blocks import BLOCK_BYTES, block_hints
from protocol.chunks import CHUNK_BYTES, chunk_count, chunk_length
from protocol.values import Digest, Parcel
from storage.files import FileLayer
from tests.depots import Bench, hashed, record_of, some_bytes

NEW_BYTES = 3 * CHUNK_BYTES + 5_000
NEW = some_bytes(NEW_BYTES, seed=1)
OLD = bytes(NEW[:CHUNK_BYTES]) + some_bytes(CHUNK_BYTES, seed=2) + NEW[2 * CHUNK_BYTES : 3 * CHUNK_BYTES - 4096]
NAME = "checkpoint/step"
RECORD = record_of(NEW, NAME, hlc=2)
LEAVES = hashed(NEW)[2]
DISKS_FULL = 28  # ENOSPC

# What a connection does. The number is where, in bytes of what it sends.
HONEST, DIES, LIES, REFUSES, UNREACHABLE, SHORT = "honest", "dies", "lies", "refuses", "unreachable", "short"


@dataclass(frozen=True)
class Deed:
    """One connection's conduct."""

    what: str
    at: int = 0


class FakeStream:
    """The bytes of an answer, until the deed says otherwise."""

    def __init__(self, peer: str, deed: Deed) -> None:
        self.peer, self.deed = peer, deed
        self.patience = Patience()
        self.answer = memoryview(b"")
        self.sent = 0
        self.asked = b""

    def read_into(self, view: memoryview) -> None:
        piece = bytearray(self.answer[: len(view)])
        self.answer = self.answer[len(view) :]
        first, self.sent = self.sent, self.sent + len(piece)
        if first <= self.deed.at < self.sent:
            if self.deed.what == DIES:
                raise StreamBroken(f"{self.peer} closed the connection")
            if self.deed.what == LIES:
                piece[self.deed.at - first] ^= 0xFF
        view[: len(piece)] = piece

    def send(self, payload: bytes) -> None:
        self.asked = bytes(payload)

    def close(self) -> None: ...

    def abort(self) -> None: ...


class FakeConnection:
    """Answers what a holder of NEW would, over its stream."""

    reused = False

    def __init__(self, peer: str, deed: Deed) -> None:
        self.peer = peer
        self.stream = FakeStream(peer, deed)
        self._path = ""

    def get(self, path: str, headers: dict[str, str]) -> Head:
        if self.stream.deed.what == REFUSES:
            return self._answers(404, json.dumps({"error": "it is not here"}).encode())
        if path.startswith("/v1/chunks/"):
            return self._answers(200, b"".join(LEAVES))
        if path.startswith("/v1/blocks/"):
            first, count = (int(part.partition("=")[2]) for part in path.partition("?")[2].split("&"))
            pieces = [self._chunk(index) for index in range(first, first + count)]
            hints = b"".join(map(block_hints, pieces))
            assert len(hints) == hints_length(NEW_BYTES, first, count)
            return self._answers(200, hints)
        first, _, last = headers["Range"].removeprefix("bytes=").partition("-")
        body = NEW[int(first) : int(last) + 1]
        return self._answers(206, body, f"bytes {first}-{last}/{NEW_BYTES}")

    def send_request(self, method: str, path: str, headers: dict[str, str]) -> None:
        assert method == "POST"

    def read_answer(self, within_seconds: float) -> Head:
        runs = list(_RUN.iter_unpack(self.stream.asked))
        body = b"".join(NEW[first * BLOCK_BYTES : (first + count) * BLOCK_BYTES] for first, count in runs)
        assert len(body) == runs_length(NEW_BYTES, runs)
        return self._answers(200, body)

    def read_sentence(self, head: Head) -> str:
        return f"{self.peer} answered {head.status}"

    def _answers(self, status: int, body: bytes, content_range: str = "") -> Head:
        self.stream.answer = memoryview(body)
        length = len(body) - (self.stream.deed.what == SHORT)
        return Head(f"HTTP/1.1 {status} x", {"content-length": str(length), "content-range": content_range})

    def _chunk(self, index: int) -> bytes:
        return NEW[index * CHUNK_BYTES : index * CHUNK_BYTES + chunk_length(NEW_BYTES, index)]


@dataclass
class FakeConnections:
    """Every connection to a source is the next of its deeds; afterwards it cannot be reached."""

    deeds: dict[str, deque[Deed]]
    guards: Guards
    streams: int
    speeds: Speeds = field(default_factory=Speeds)

    def take(self, peer: str, job: Job, fresh: bool = False) -> Any:
        job.go_on()
        if not fresh and (why := self.guards.admits(peer, "p2p_http")):
            raise Avoided(why)
        deeds = self.deeds[peer]
        deed = deeds.popleft() if deeds else Deed(UNREACHABLE)
        if deed.what == UNREACHABLE:
            raise StreamBroken(f"{peer} cannot be reached")
        return FakeConnection(peer, deed)

    def give_back(self, connection: FakeConnection, job: Job) -> None: ...

    def drop(self, connection: FakeConnection, job: Job) -> None: ...

    def streams_to(self, peer: str) -> int:
        return self.streams

    def succeeded(self, peer: str) -> None:
        self.guards.succeeded(peer, "p2p_http")

    def failed(self, peer: str, why: str) -> None:
        self.guards.failed(peer, "p2p_http", why)


class FullDisk(FileLayer):
    """Has room for so many writes at an offset."""

    def __init__(self, writes: int) -> None:
        self.left = writes

    def pwrite(self, fd: int, payload: Any, offset: int) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(DISKS_FULL, "No space left on device")
        return super().pwrite(fd, payload, offset)


deeds = st.builds(
    Deed,
    st.sampled_from([HONEST, HONEST, DIES, LIES, REFUSES, UNREACHABLE, SHORT]),
    st.integers(0, NEW_BYTES) | st.integers(0, 200),
)
lives = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("xyz"), st.lists(deeds, max_size=4), min_size=1, max_size=3),
        st.integers(1, 3),  # streams to each source
        st.none() | st.integers(0, 12),  # writes until the disk is full
    ),
    min_size=1,
    max_size=3,
)


class Life:
    """The receiver, from one start to the end that takes everything which is not on its disk."""

    def __init__(self, folder: Path, has_older: bool, files: FileLayer) -> None:
        self.bench = Bench(folder, files)
        if has_older:
            digest, _, leaves = hashed(OLD)
            place = self.bench.depot.accept_file("older")
            self.bench.manifest.places["older"] = place.place  # type: ignore[assignment]
            self.bench.manifest.leaves[digest] = tuple(leaves)
            self.bench.manifest.versions[NAME] = (digest,)
        self.blamed: list[str] = []

    def fetch(self, sources: dict[str, list[Deed]], streams: int) -> str:
        ((refusal,),) = (self.bench.depot.reserve(1, [Parcel(RECORD)]).refused,)
        if refusal:
            return refusal
        connections = FakeConnections({peer: deque(known) for peer, known in sources.items()}, Guards(), streams)
        told: Callable[[str, Digest, str], None] = lambda peer, digest, why: self.blamed.append(peer)  # noqa: E731
        meter = Meter(1, "x", "fetch", RECORD.size)
        return Fetching(RECORD, tuple(sources), self.bench.depot, connections, meter, Job(), told).run()  # type: ignore[arg-type]


@given(lives, st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_sources_disks_and_restarts_do_a_final_name_has_the_right_bytes(
    story: list[tuple[dict[str, list[Deed]], int, int | None]], has_older: bool
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="spore-fetch-"))
    try:
        (folder / "files").mkdir()
        if has_older:
            (folder / "files/older").write_bytes(OLD)
        for sources, streams, writes in story:
            life = Life(folder, has_older, FileLayer())
            life.bench.files.pwrite = (FullDisk(writes) if writes is not None else FileLayer()).pwrite  # type: ignore[method-assign]
            why = life.fetch(sources, streams)
            outcome = life.bench.publish(RECORD, "step")
            final = folder / "files/step"
            assert bool(why) == bool(outcome.failed)
            assert final.exists() == (not why)
            if not why:
                assert final.read_bytes() == NEW
                return
            assert "unexpected" not in why
            liars = {peer for peer, known in sources.items() if any(deed.what in (LIES, SHORT) for deed in known)}
            assert set(life.blamed) <= liars  # nobody is blamed for what another did, or for our own older version
        # The last life has an honest source and room: whatever came before, it ends well.
        life = Life(folder, has_older, FileLayer())
        assert life.fetch({"w": [Deed(HONEST)] * 9}, 1) == ""
        assert life.bench.publish(RECORD, "step").failed == ()
        assert (folder / "files/step").read_bytes() == NEW
        assert chunk_count(NEW_BYTES) == len(LEAVES)
    finally:
        shutil.rmtree(folder)
