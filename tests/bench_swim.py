"""Figures of membership in virtual time: how soon a death is known, what idling costs, whether stalls kill anybody.

    python tests/bench_swim.py [nodes] [seconds of stalls] [seed]     (0 seconds: no stalls)

With 1,000 nodes and 870 seconds (ten node-days) this takes some twenty minutes of one core; it prints as it goes.
"""

from __future__ import annotations

import sys
from dataclasses import astuple
from pathlib import Path
from random import Random
from time import process_time

import msgpack

sys.path.insert(0, str(Path(__file__).parents[1]))

from protocol.claims import Message, Standing
from tests.swimming import World, names

FRAME_BYTES = 22 + 52 + 4  # a TLS record, IPv4 and TCP with time stamps, a WebSocket header
TCP_ACK_BYTES = 52
KILLS = 4
IDLE_SECONDS = 40
STALL_SECONDS = 5.0


def weight_bytes(message: Message) -> int:
    """What a message costs on the wire, but for the acknowledgement."""
    return len(msgpack.packb([1, 9, *astuple(message)])) + FRAME_BYTES


def idle(world: World, nodes: int) -> None:
    world.run(12)
    world.weigh = weight_bytes
    messages, size = world.messages, world.bytes
    world.run(IDLE_SECONDS)
    sent = (world.messages - messages) / IDLE_SECONDS / nodes
    both = 2 * ((world.bytes - size) / IDLE_SECONDS / nodes + sent * TCP_ACK_BYTES)
    print(f"idle: n={nodes}, {sent:.2f} messages sent and {both:.0f} bytes in and out, a node and second")


def deaths(world: World, nodes: int) -> None:
    victims = Random(5).sample(names(nodes), 2 * KILLS)
    for way in ("kill", "power_off"):
        took = []
        for _ in range(KILLS):
            victim = victims.pop()
            getattr(world, way)(victim)
            took.append(world.run_until(lambda victim=victim: world.all_see(victim, Standing.DEAD), 60))  # type: ignore[misc]
            world.run(3)
        print(f"{way}: n={nodes}, known to all after {sorted(took)} seconds", flush=True)


def stalls(nodes: int, seconds: int, seed: int) -> None:
    """A tenth of the nodes at a time, five seconds each, without a pause."""
    world, random, start = World(seed).settled(nodes), Random(seed), process_time()
    world.run(5)

    def storm() -> None:
        for node in random.sample([life.name for life in world.up() if not life.stalled], nodes // 10):
            world.stall(node, STALL_SECONDS)
        world.after(int(STALL_SECONDS * 1000) + 1, storm)

    storm()
    for done in range(30, seconds + 1, 30):
        world.run(30)
        days, cpu = nodes * done / 86_400, process_time() - start
        print(f"stalls: {days:.2f} node-days, {len(world.deaths())} false deaths, {cpu:.0f} s of CPU", flush=True)


def settled(nodes: int, seed: int = 1) -> None:
    """Idling and deaths of a fleet that has known each other for long."""
    world = World(seed).settled(nodes)
    idle(world, nodes)
    deaths(world, nodes)


def main(nodes: int = 1_000, seconds: int = 870, seed: int = 1) -> None:
    settled(nodes, seed)
    if seconds:
        stalls(nodes, seconds, seed)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
