"""Figures of agreement in virtual time, from whole simulated fleets: they do not depend on the machine or its load.

    python tests/bench_agreement.py [--large] [hops] [spread] [loss] [idle] [partition]

Without `--large` fleets of 100 nodes; with it 1,000 as well, which takes a quarter of an hour of one core.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from math import ceil, log2
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

from protocol.effects import Inline
from protocol.events import Put
from protocol.messages import Message, RowsMessage
from protocol.rings import Rings
from protocol.values import RecordKey
from simulations.driver import SimNode
from simulations.fleets import ROUTING, Shape, invent_fleet
from simulations.links import Cut
from simulations.options import Options
from simulations.oracle import Request
from simulations.world import World

SEEDS = 20
HOP_MS = 20  # of every message, where latencies are equal
FRAME_BYTES = 22 + 52 + 4  # a TLS record, IPv4 and TCP with time stamps, a WebSocket header
TCP_ACK_BYTES = 52
PING_BYTES = 2 * (FRAME_BYTES + TCP_ACK_BYTES) // 10  # of a session, each second


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[ceil(share * len(values)) - 1]


def settled(count: int, seed: int, **options: object) -> World:
    """A fleet that has known each other for long, five seconds after that; digests at the interval of real fleets."""
    fleet = invent_fleet(Random(seed), count, Shape(domains=4))
    fleet = replace(fleet, routing=replace(ROUTING, gossip_interval_seconds=30.0))
    world = World(Options(nodes=count, operations=0, settled=True, **options), fleet, seed)  # type: ignore[arg-type]
    world.start()
    world.schedule.run_until(5_000)
    return world


def put(world: World, node: SimNode, number: int) -> None:
    digest = number.to_bytes(4, "big") * 8
    name = f"checkpoint/bench/{number}"
    request = world.oracle.ask(Request(node.name, "put", name, digest, 0, world.schedule.now_ms + 600_000))
    node.handle(Put(request, name, digest, digest, 1_000, 0o644, Inline(digest)))


def living(world: World) -> list[SimNode]:
    return world.verdict.living()


def known(world: World, name: str) -> int:
    """How many living nodes have a record of this name on their disk."""
    return sum(bool(node.disk.catalogue.tables.names.get(name)) for node in living(world))


# --- one record to every node ---


def flood(rings: Rings, origin: str) -> tuple[int, int]:
    """(hops to the last node, copies sent): each node forwards once, to its neighbours on both rings."""
    reached, front, hops, copies = {origin: ""}, [origin], 0, 0
    while front:
        found: list[str] = []
        for node in front:
            for neighbour in rings.neighbours(node, lambda other: True):
                if neighbour != reached[node]:
                    copies += 1
                    if neighbour not in reached:
                        reached[neighbour] = node
                        found.append(neighbour)
        front, hops = found, hops + bool(found)
    assert len(reached) == len(rings)
    return hops, copies


def hops(large: bool) -> None:
    for count in (100, 1_000, 10_000):
        found = []
        for seed in range(SEEDS):
            random = Random(seed)
            names = [f"{seed}-{number}" for number in range(count)]
            rings = Rings.build([(name, f"domain-{random.randrange(6)}") for name in names])
            found.append(flood(rings, random.choice(names)))
        last = percentile([hop for hop, _ in found], 0.95)
        copies = max(sent for _, sent in found) / count
        print(
            f"hops: n={count}, {SEEDS} seeds: p95 {last:.0f} to the last node (bound {1.5 * log2(count):.1f})", end=""
        )
        print(f", at most {copies:.2f} copies a node", flush=True)


def spread(large: bool) -> None:
    """The same in whole fleets, with commits between hearing and forwarding, and holdings beside the record."""
    for count in (100, 1_000) if large else (100,):
        world = settled(count, 1, equal_latency_ms=HOP_MS)
        told: dict[RecordKey, int] = {}
        send = world.around.network.send

        def counting(
            node: str, peer: str, message: Message, told: dict[RecordKey, int] = told, send: object = send
        ) -> bytes:
            if isinstance(message, RowsMessage):
                for record in message.rows.records:
                    told[record.key] = told.get(record.key, 0) + 1
            return send(node, peer, message)  # type: ignore[operator,no-any-return]

        world.around.network.send = counting  # type: ignore[method-assign]
        random, last = Random(count), []
        for number in range(1, SEEDS + 1):
            put(world, random.choice([n for n in living(world) if not n.around.fleet.host(n.name).excluded]), number)
            begun = world.schedule.now_ms
            while known(world, f"checkpoint/bench/{number}") < count:
                world.schedule.run_until(world.schedule.now_ms + 10)
            last.append(float(world.schedule.now_ms - begun))
            world.schedule.run_until(world.schedule.now_ms + 1_000)
        depth = [max(hop for (_, key), hop in _depths(world).items() if key == record) for record in told]
        copies = sum(told.values()) / len(told) / count
        print(
            f"spread: n={count}, {SEEDS} records: p95 {percentile([float(d) for d in depth], 0.95):.0f} hops and "
            f"{percentile(last, 0.95) / 1000:.2f} s to the last node at {HOP_MS} ms a hop and commits of 1-8 ms, "
            f"{copies:.2f} copies of a record sent a node",
            flush=True,
        )


def _depths(world: World) -> dict[tuple[str, RecordKey], int]:
    return {(node, key): hop for key, hops in world.oracle._hop.items() for node, hop in hops.items()}


def loss(large: bool) -> None:
    """One message in twenty is lost and sent again; one node in twenty has just died, and nobody knows."""
    took = []
    for seed in range(1, SEEDS + 1):
        world = settled(100, seed, packet_loss=0.05)
        random = Random(seed)
        origin, *dead = random.sample([n for n in living(world) if not world.fleet.host(n.name).excluded], 6)
        world.around.network.weather.packet_loss = 0.05
        for node in dead:
            node.crash(power=True)
        put(world, origin, seed)
        begun = world.schedule.now_ms
        while known(world, f"checkpoint/bench/{seed}") < 95:
            world.schedule.run_until(world.schedule.now_ms + 50)
        took.append((world.schedule.now_ms - begun) / 1000)
    print(
        f"loss: n=100, 5% lost, 5% dead and undetected, {SEEDS} seeds: known to every living node after "
        f"{percentile(took, 0.5):.2f} s (median), {percentile(took, 0.99):.2f} s (p99)",
        flush=True,
    )


# --- fleets at rest, and fleets that were parted ---


def idle(large: bool) -> None:
    for count in (10, 100, 1_000) if large else (10, 100):
        world = settled(count, 1)
        network = world.around.network
        messages, size, seconds = network.messages, network.bytes, 90
        world.schedule.run_until(world.schedule.now_ms + seconds * 1000)
        sent = (network.messages - messages) / count / seconds
        body = (network.bytes - size) / count / seconds
        sessions = sum(len(node.replica.members.sessions) for node in world.nodes.values()) / count
        pings = sessions * PING_BYTES
        both = 2 * (body + sent * (FRAME_BYTES + TCP_ACK_BYTES)) + 2 * pings
        print(
            f"idle: n={count}: {sent:.2f} messages a second and node, {sessions:.1f} sessions, "
            f"{both / 1000:.2f} KB/s in and out, TLS, TCP and pings counted",
            flush=True,
        )


def partition(large: bool) -> None:
    """Half and half for 120 s, with 500 new records on each side."""
    for count in (100, 1_000) if large else (100,):
        world = settled(count, 1)
        names = sorted(world.nodes)
        halves = [dict.fromkeys(names[side::2]) for side in (0, 1)]
        cut = Cut(*halves)
        world.around.network.cut(cut)
        begun = world.schedule.now_ms
        for number in range(1_000):
            makers = [n for n in halves[number % 2] if not world.fleet.host(n).excluded]
            node = world.nodes[makers[number // 2 % len(makers)]]
            world.schedule.after(number * 110, put, world, node, number + 1)
        world.schedule.run_until(begun + 120_000)
        world.around.network.mend(cut)
        healed = world.schedule.now_ms
        while len({node.disk.catalogue.sketch().fold() for node in living(world)}) > 1 or known(
            world, "checkpoint/bench/1000"
        ) < len(names):
            world.schedule.run_until(world.schedule.now_ms + 500)
            assert world.schedule.now_ms - healed < 300_000, "they do not agree"
        seconds = (world.schedule.now_ms - healed) / 1000
        print(f"partition: n={count}, 120 s, 500 records a side: all agree {seconds:.1f} s after healing", flush=True)


FIGURES = {"hops": hops, "spread": spread, "loss": loss, "idle": idle, "partition": partition}


def main(chosen: Iterator[str] | tuple[str, ...] = tuple(FIGURES), large: bool = False) -> None:
    for name in chosen:
        FIGURES[name](large)


if __name__ == "__main__":
    words = sys.argv[1:]
    main(tuple(word for word in words if word != "--large") or tuple(FIGURES), "--large" in words)
