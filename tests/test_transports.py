"""Transports with their real programs over real TLS and SSH: bytes arrive verified, whatever dies, lies or fills."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node.bulk_client import Job
from node.progress import Meter
from node.transports import aria2, choice, rsync
from node.transports.carrier import Carrier
from node.transports.order import Kit
from node.transports.relay_desk import RelayDesk
from protocol.chunks import CHUNK_BYTES
from protocol.effects import Fetch
from protocol.fleet import Fleet, Host
from protocol.values import Record
from tests.bulk_world import MIB, Node, Wire, World, content_of, leaves_of, record_of, world_in
from tests.sshd import Sshd, closed_port, sshd_in

GENEROUS_SECONDS = 60.0
CONTENT = content_of(9 * MIB + 5, seed=3)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path / "world") as made:
        yield made


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd_in(tmp_path_factory.mktemp("sshd")) as made:
        yield made


class Fetcher:
    """Node `b` with every transport; what it fetches, and what the carrier said of it."""

    def __init__(self, node: Node, hosts: dict[str, Host] | None = None, relays: tuple[str, ...] = ()) -> None:
        self.node = node
        self.fleet = Fleet("fleet", hosts=hosts or {})
        self.reserved: dict[bytes, int] = {}
        self.refusal = ""
        self.workshop = node.shelf.bench.store.own / "transports"
        self.kit = Kit(
            node.name,
            node.shelf,
            node.transfers.connections,
            self.workshop,
            self._reserve,
            self.reserved.pop,
            node.identity.folder,
            lambda: self.fleet,
            node.addresses.get,
            lambda *told: node.heard.add(node.heard.wrong, told),
        )
        self.carrier = Carrier(
            self.kit,
            lambda: relays,
            lambda peer: node.guards.shut(peer, "p2p_http"),
            lambda report: node.heard.add(node.heard.reports, report),
        )

    def _reserve(self, key: bytes, size: int) -> str:
        self.reserved[key] = size
        return self.refusal

    def fetch(self, record: Record, *sources: str, job: Job | None = None) -> str:
        effect = Fetch(1, record, sources)
        return self.carrier.fetch(effect, Meter(1, ",".join(sources), "fetch", record.size), job or Job())

    def by(self, record: Record) -> list[tuple[str, bool]]:
        """Each transport that was tried, and whether it brought the artifact."""
        return [(c.transport, c.outcome == "arrived") for c in self.carrier.choices(record.digest)]

    def has(self, record: Record, content: bytes) -> bool:
        left = list(self.workshop.glob("*")) if self.workshop.exists() else []
        return self.node.shelf.arrived_bytes(record) == content and not left and not self.reserved


def lender(folder: Path, path: Path, content: bytes, size: int | None = None, rate: int | None = None) -> str:
    """What stands for `spore` over there: it lends one file."""
    folder.mkdir(parents=True, exist_ok=True)
    size = len(content) if size is None else size
    rows = [{"path": str(path), "size": size, "bytes_per_second": rate}]
    rows += [{"leaves": b"".join(leaves_of(content)).hex()}]  # type: ignore[dict-item]
    (folder / "loan").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return f"sh -c 'cat {folder / 'loan'}'"


@pytest.fixture
def only_ssh(world: World, sshd: Sshd, tmp_path: Path) -> tuple[Fetcher, Record]:
    """Node b reaches a by SSH alone; a lends one file."""
    b = world.node("b")
    b.addresses["a"] = closed_port()
    path = tmp_path / "held.bin"
    path.write_bytes(CONTENT)
    hosts = {"a": Host("a", "127.0.0.1:1", ssh=sshd.entry(lender(tmp_path / "loan", path, CONTENT)))}
    return Fetcher(b, hosts), record_of(CONTENT)


# --- rsync over SSH ---


def test_rsync_brings_what_no_port_does_and_leaves_nothing_behind(only_ssh: tuple[Fetcher, Record]) -> None:
    fetcher, record = only_ssh
    assert fetcher.fetch(record, "a") == ""
    assert fetcher.has(record, CONTENT)
    assert fetcher.by(record) == [("p2p_http", False), ("rsync", True)]


def test_a_small_artifact_comes_by_rsync_too(world: World, sshd: Sshd, tmp_path: Path) -> None:
    b = world.node("b")
    content = b"small"
    (tmp_path / "held").write_bytes(content)
    command = lender(tmp_path / "loan", tmp_path / "held", content)
    fetcher = Fetcher(b, {"a": Host("a", ssh=sshd.entry(command))})
    record = record_of(content)
    assert fetcher.fetch(record, "a") == ""
    assert fetcher.has(record, content)
    assert fetcher.by(record) == [("rsync", True)]


def test_rsync_begins_with_what_staging_has_verified(only_ssh: tuple[Fetcher, Record]) -> None:
    """Nine of ten chunks are there: what comes over SSH is one chunk, not the file."""
    fetcher, record = only_ssh
    partial = fetcher.node.shelf.partial(record)
    partial.set_leaves(leaves_of(CONTENT))
    for index in range(9):
        if index != 4:
            partial.write_chunk(index, CONTENT[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
    partial.close()
    host = fetcher.fleet.host("a")
    assert host.ssh is not None
    wire = Wire(f"127.0.0.1:{host.ssh.port}")
    through = replace(host.ssh, port=int(wire.address.rpartition(":")[2]))
    fetcher.fleet = Fleet("fleet", hosts={"a": replace(host, ssh=through)})
    assert fetcher.fetch(record, "a") == ""
    assert fetcher.has(record, CONTENT)
    wire.close()
    assert MIB < wire.came_bytes < 2 * MIB  # two chunks are missing, one of five bytes


def test_wrong_bytes_over_ssh_are_dropped_chunk_by_chunk_and_told_of(
    only_ssh: tuple[Fetcher, Record], tmp_path: Path
) -> None:
    fetcher, record = only_ssh
    lie = bytearray(CONTENT)
    lie[3 * CHUNK_BYTES + 7] ^= 1
    (tmp_path / "held.bin").write_bytes(lie)
    why = fetcher.fetch(record, "a")
    assert "1 chunks of" in why
    assert not fetcher.node.shelf.is_staged(record)
    assert [stripe.count for stripe in fetcher.node.shelf.missing(record)] == [1]
    ((peer, digest, _),) = [told for told in fetcher.node.heard.wrong if told[0] == "a"]
    assert (peer, digest, fetcher.reserved) == ("a", record.digest, {})


@pytest.mark.parametrize("lie", ["size", "list"])
def test_a_loan_that_is_not_what_was_asked_for_is_refused(world: World, sshd: Sshd, tmp_path: Path, lie: str) -> None:
    (tmp_path / "held").write_bytes(CONTENT)
    other = CONTENT[:-1] + b"x"
    command = lender(
        tmp_path / "l", tmp_path / "held", CONTENT if lie == "size" else other, 7 if lie == "size" else None
    )
    fetcher = Fetcher(world.node("b"), {"a": Host("a", ssh=sshd.entry(command))})
    record = record_of(CONTENT)
    assert ("lends another file" if lie == "size" else "chunk list that came over SSH is wrong") in fetcher.fetch(
        record, "a"
    )
    assert len(fetcher.node.shelf.missing(record)) == 0  # all of it, as before


def test_a_changed_host_key_ends_it_before_a_byte(only_ssh: tuple[Fetcher, Record], tmp_path: Path) -> None:
    fetcher, record = only_ssh
    host = fetcher.fleet.host("a")
    assert host.ssh is not None
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
    fetcher.fleet = Fleet("fleet", hosts={"a": replace(host, ssh=replace(host.ssh, host_key=other))})
    why = fetcher.fetch(record, "a")
    assert "ssh ended with 255" in why
    assert "ost key verification failed" in why
    assert fetcher.by(record)[-1] == ("p2p_http", False) or ("rsync", False) in fetcher.by(record)


def test_without_a_pinned_key_ssh_is_not_tried(world: World, sshd: Sshd) -> None:
    b = world.node("b")
    b.addresses["a"] = closed_port()
    fetcher = Fetcher(b, {"a": Host("a", ssh=replace(sshd.entry(), host_key=None))})
    record = record_of(CONTENT)
    fetcher.fetch(record, "a")
    assert "rsync" not in [name for name, _ in fetcher.by(record)]


def test_a_missing_program_disables_its_transport_visibly(
    only_ssh: tuple[Fetcher, Record], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fetcher, record = only_ssh
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fetcher.carrier.missing() == {"aria2": "aria2c not installed", "rsync": "rsync and ssh not installed"}
    assert "rsync" not in fetcher.fetch(record, "a")
    assert fetcher.by(record) == [("p2p_http", False)]


def test_a_full_disk_is_said_and_nothing_is_left_or_reserved(only_ssh: tuple[Fetcher, Record]) -> None:
    fetcher, record = only_ssh
    fetcher.refusal = "the disk is 71.0% used and its cap is 70%"
    assert fetcher.refusal in fetcher.fetch(record, "a")
    assert not any(fetcher.workshop.glob("*"))


def test_a_source_that_dies_leaves_what_came_and_the_next_way_brings_the_rest(
    world: World, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rsync is killed in the middle of a slow transfer; the port is back by then."""
    a, b = world.node("a"), world.node("b")
    record = a.shelf.hold(CONTENT)
    b.addresses["a"] = closed_port()
    (tmp_path / "held").write_bytes(CONTENT)
    command = lender(tmp_path / "loan", tmp_path / "held", CONTENT, rate=6 * MIB)
    fetcher = Fetcher(b, {"a": Host("a", "127.0.0.1:1", ssh=sshd.entry(command))})

    def kill() -> None:
        b.addresses["a"] = a.address
        _kill_below(os.getpid(), "rsync")

    timer = _when(lambda: _written(fetcher.workshop) > 2 * MIB, kill)
    why = fetcher.fetch(record, "a")
    timer.join()
    assert "rsync ended" in why or why == ""
    got = MIB * sum(10 - sum(s.count for s in b.shelf.missing(record)) for _ in range(1))
    assert got >= MIB
    assert fetcher.fetch(record, "a") == ""
    assert fetcher.has(record, CONTENT)


def test_a_cancelled_order_ends_its_programs_at_once(world: World, sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "held").write_bytes(CONTENT)
    command = lender(tmp_path / "loan", tmp_path / "held", CONTENT, rate=MIB)
    fetcher = Fetcher(world.node("b"), {"a": Host("a", ssh=sshd.entry(command))})
    job = Job()
    timer = _when(lambda: _written(fetcher.workshop) > 1000, lambda: job.cancel("nobody wants it any more"))
    began = time.monotonic()
    with pytest.raises(Exception, match="nobody wants it any more"):
        fetcher.fetch(record_of(CONTENT), "a", job=job)
    timer.join()
    assert time.monotonic() - began < 8
    assert not _below(os.getpid(), "rsync")
    assert not any(fetcher.workshop.glob("*"))


def _when(true: object, then: object) -> threading.Thread:
    def watch() -> None:
        deadline = time.monotonic() + GENEROUS_SECONDS
        while not true() and time.monotonic() < deadline:  # type: ignore[operator]
            time.sleep(0.02)
        then()  # type: ignore[operator]

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def _written(workshop: Path) -> int:
    total = 0
    for path in workshop.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def _below(process: int, name: str) -> list[int]:
    """Processes of this name that descend from us."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "stat").read_text()
        except OSError:
            continue
        if f"({name})" in words and int(words.rpartition(")")[2].split()[1]) == process:
            found.append(int(entry.name))
    return found


def _kill_below(process: int, name: str) -> None:
    for each in _below(process, name):
        os.kill(each, 15)


# --- aria2 ---


@pytest.fixture
def two_sources(world: World, monkeypatch: pytest.MonkeyPatch) -> tuple[Fetcher, Record, Node, Node]:
    if not choice or aria2.lacking("aria2c"):
        pytest.skip("aria2c is not installed")
    monkeypatch.setattr(choice, "ARIA2_BYTES_MIN", 4 * MIB)
    a, c, b = world.node("a"), world.node("c"), world.node("b")
    record = a.shelf.hold(CONTENT)
    c.shelf.hold(CONTENT)
    return Fetcher(b), record, a, c


def test_aria2_fetches_from_several_nodes_at_once(two_sources: tuple[Fetcher, Record, Node, Node]) -> None:
    fetcher, record, _, _ = two_sources
    assert fetcher.fetch(record, "a", "c") == ""
    assert fetcher.has(record, CONTENT)
    assert fetcher.by(record) == [("aria2", True)]
    assert not _below(os.getpid(), "aria2c")


def test_aria2_goes_on_when_one_of_its_sources_dies(two_sources: tuple[Fetcher, Record, Node, Node]) -> None:
    fetcher, record, a, c = two_sources
    a.throttle.set_rate(4.0 * MIB)
    c.throttle.set_rate(4.0 * MIB)

    def die() -> None:
        c.port.close()
        assert c.server.stop(GENEROUS_SECONDS)
        a.throttle.set_rate(None)

    timer = _when(lambda: _written(fetcher.workshop) > MIB, die)
    assert fetcher.fetch(record, "a", "c") == ""
    timer.join()
    assert fetcher.has(record, CONTENT)


def test_what_aria2_wrote_wrong_is_fetched_again_by_our_own_protocol(
    two_sources: tuple[Fetcher, Record, Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sources send a wrong byte to whoever does not verify; aria2 does not. Then they are honest."""
    fetcher, record, _, _ = two_sources
    honest = aria2.absorb

    def spoiled(kit: object, order: object, scratch: object) -> str:
        with scratch.file.open("r+b") as file:  # type: ignore[attr-defined]
            file.seek(5 * CHUNK_BYTES)
            file.write(b"HTTP/1.1 502 Bad Gateway")
        return honest(kit, order, scratch)  # type: ignore[arg-type]

    monkeypatch.setattr(aria2, "absorb", spoiled)
    assert fetcher.fetch(record, "a", "c") == ""
    assert fetcher.has(record, CONTENT)
    assert fetcher.by(record) == [("aria2", False), ("p2p_http", True)]


def test_a_full_disk_stops_aria2_before_it_starts(two_sources: tuple[Fetcher, Record, Node, Node]) -> None:
    fetcher, record, _, _ = two_sources
    fetcher.refusal = "less than min_free_bytes (1073741824) would stay free"
    assert fetcher.fetch(record, "a", "c") == ""  # by our own protocol, which writes into staging alone
    assert fetcher.by(record) == [("aria2", False), ("p2p_http", True)]


def test_aria2_shows_the_certificate_of_this_node(two_sources: tuple[Fetcher, Record, Node, Node]) -> None:
    fetcher, record, a, c = two_sources
    for node in (a, c):
        node.revocations["b"] = 1 << 40  # whoever joined before then is out
    fetcher.fetch(record, "a", "c")
    assert fetcher.by(record) == [("aria2", False), ("p2p_http", False)]
    assert any(
        reason == "revoked" or "revoked" in sentence for reason, _, sentence in a.heard.refused + c.heard.refused
    )


# --- relay ---


class CarryingNode:
    """Node c, which reaches both; it has what it is asked to carry when `come` is called."""

    def __init__(self, node: Node, most: int = 4) -> None:
        from concurrent.futures import Future

        self.node = node
        self.futures: dict[bytes, Future[Record]] = {}
        self.most = most

        def bring(digest: bytes) -> Future[Record]:
            return self.futures.setdefault(digest, Future())

        self.desk = node.server.desk = RelayDesk(
            node.name,
            node.shelf.depot,
            bring,
            lambda digest: 0,
            lambda: self.most,
            lambda report: node.heard.add(node.heard.reports, report),
        )

    def come(self, record: Record, content: bytes) -> None:
        partial = self.node.shelf.partial(record)
        if record.size <= CHUNK_BYTES:
            assert self.node.shelf.arrive_small([(record, content)]) == []
        else:
            partial.set_leaves(leaves_of(content))
            for index in range(0, -(-record.size // CHUNK_BYTES)):
                partial.write_chunk(index, content[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
        partial.close()
        self.futures[record.digest].set_result(record)


@pytest.mark.parametrize("size", [5, 9 * MIB + 5])
def test_a_node_that_both_reach_carries_an_artifact_and_does_not_keep_it(world: World, size: int) -> None:
    content = CONTENT[:size]
    b, c = world.node("b"), world.node("c")
    carrying = CarryingNode(c)
    fetcher = Fetcher(b, relays=("c",))
    record = record_of(content)
    timer = _when(lambda: record.digest in carrying.futures, lambda: carrying.come(record, content))
    assert fetcher.fetch(record, "a") == ""  # nobody knows an address of a
    timer.join()
    assert fetcher.has(record, content)
    assert fetcher.by(record) == [("relay", True)]
    assert (carrying.desk.carried, carrying.desk.carried_bytes, carrying.desk.facts()) == (1, size, [])
    assert {"relay", "relayed"} <= {report.event for report in c.heard.reports}
    assert c.shelf.depot.open_blob(record.digest) is None  # not a holder


def test_a_carrier_serves_an_errand_only_to_whom_it_was_run_for(world: World) -> None:
    b, c = world.node("b"), world.node("c")
    carrying = CarryingNode(c)
    record = record_of(CONTENT)
    assert carrying.desk.ask("b", record.digest) == (200, {"here": False, "bytes_done": 0})
    carrying.come(record, CONTENT)
    assert carrying.desk.ask("b", record.digest) == (200, {"here": True})
    assert carrying.desk.open_blob("d", record.digest) is carrying.desk.leaves("d", record.digest) is None
    assert Fetcher(b).fetch(record, "c") == ""


def test_errands_are_bounded_and_one_that_nobody_asks_after_is_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = world.node("c")
    desk = CarryingNode(c, most=2).desk
    digests = [bytes([number]) * 32 for number in range(3)]
    assert [desk.ask("b", digest)[0] for digest in digests] == [200, 200, 503]
    assert "carries 2 artifacts for others and 2 is its most" in str(desk.ask("b", digests[2])[1]["error"])
    monkeypatch.setattr("node.transports.relay_desk.FORGOTTEN_SECONDS", -1.0)
    desk.tidy()
    assert desk.facts() == []
    assert desk.ask("b", digests[2])[0] == 200


def test_a_carrier_that_cannot_bring_it_says_why_and_the_next_one_is_asked(world: World) -> None:
    b, c, d = world.node("b"), world.node("c"), world.node("d")
    first, second = CarryingNode(c), CarryingNode(d)
    record = record_of(CONTENT)
    fetcher = Fetcher(b, relays=("c", "d"))
    failing = _when(
        lambda: record.digest in first.futures,
        lambda: first.futures[record.digest].set_exception(RuntimeError("a is down")),
    )
    coming = _when(lambda: record.digest in second.futures, lambda: second.come(record, CONTENT))
    assert fetcher.fetch(record, "a") == ""
    failing.join()
    coming.join()
    assert fetcher.has(record, CONTENT)


def test_a_node_that_carries_for_nobody_says_so(world: World) -> None:
    b, _ = world.node("b"), world.node("c")
    assert "carries nothing for others" in Fetcher(b, relays=("c",)).fetch(record_of(CONTENT), "a")


# --- the outside ---


def test_a_transport_that_fails_is_named_with_its_reason(only_ssh: tuple[Fetcher, Record]) -> None:
    fetcher, record = only_ssh
    fetcher.fetch(record, "a")
    events = [report.event for report in fetcher.node.heard.reports]
    assert events == ["transport", "transport_failed", "transport"]  # it arrived by the second way
    (chosen,) = [r.message for r in fetcher.node.heard.reports if " by rsync: " in r.message]
    assert chosen.startswith(f"{record.name} from a by rsync: a is reached by SSH")


def test_what_the_last_life_left_is_swept(tmp_path: Path) -> None:
    from node.transports.scratch import sweep

    (tmp_path / "t" / "x").mkdir(parents=True)
    sweep(tmp_path / "t")
    assert not (tmp_path / "t").exists()
    sweep(tmp_path / "t")


def test_a_program_gets_no_environment_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from node.transports.programs import Program

    monkeypatch.setenv("http_proxy", "http://elsewhere")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent")
    with Program([sys.executable, "-c", "import os; print(sorted(os.environ))"], Job(), tmp_path) as program:
        printed = program.wait(GENEROUS_SECONDS).decode()
    assert "proxy" not in printed
    assert "SSH" not in printed


def test_a_program_that_says_nothing_for_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    from node.transports.programs import Program, ProgramFailed

    script = "sleep 600 & echo $! > child; wait"
    with (
        Program(["sh", "-c", script], Job(), tmp_path) as program,
        pytest.raises(ProgramFailed, match="made no progress for 1 s and was ended"),
    ):
        program.wait(1.0)
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    _when(lambda: not child.exists() or child.read_text().split()[2] == "Z", lambda: None).join()
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_rsync_is_told_its_rate_in_kibibytes() -> None:
    assert "--bwlimit=1024" in rsync._options({"bytes_per_second": MIB})
    assert not [word for word in rsync._options({"bytes_per_second": None}) if word.startswith("--bwlimit")]


def test_what_was_pulled_piece_by_piece_is_told_as_the_other_ways_are(world: World) -> None:
    fetcher, record = Fetcher(world.node("b")), record_of(CONTENT)
    fetcher.carrier.pulled(record, 1, ("a", "c"), False)
    fetcher.carrier.pulled(record, 1, ("a", "c"), True)
    assert fetcher.by(record) == [("p2p_http", False), ("p2p_http", True)]
    assert fetcher.carrier.choices(bytes(32)) == []
