"""Whoever was away for longer than deletes are remembered joins anew: nothing rises from its grave, nothing is lost."""

from __future__ import annotations

import asyncio
import fcntl
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from node.identity import Identity
from node.join import JoinError, join_cluster
from protocol.effects import Inline
from protocol.events import Put, Remove
from protocol.values import Batch, Holding, Member, NodeId, Place, Record, Rows, State
from simulations.driver import SimNode
from simulations.fleets import Shape, invent_fleet
from simulations.options import Options
from simulations.oracle import Request
from simulations.world import World
from storage.manifest import Manifest
from storage.rejoining import forget_cluster
from tests.net import NOW, Node, issuer_identity, run

DAY_MS = 24 * 3600 * 1000
GONE, KEPT, LATE = "model/gone.pth", "model/kept.pth", "npz/late.npz"


# --- in virtual time: four nodes, of which one is away for 125 days ---


@pytest.fixture
def world() -> World:
    """Both artifacts are everywhere; then the last node is cut off, accepts something, and dies."""
    options = Options(nodes=4, operations=0)
    world = World(options, invent_fleet(Random(1), 4, Shape()), 1)
    for node in world.nodes.values():
        node.start()
    world.schedule.run_until(20_000)
    first, away = (world.nodes[name] for name in sorted(world.nodes)[:: len(world.nodes) - 1])
    put(world, first, GONE, 1)
    put(world, first, KEPT, 2)
    world.schedule.run_until(60_000)
    assert all(len(versions(node, name)) == 1 for node in world.nodes.values() for name in (GONE, KEPT))
    world.around.network.partition({name: int(name == away.name) for name in world.nodes})
    put(world, away, LATE, 3)
    world.schedule.run_until(62_000)
    away.crash(power=False)
    first.handle(Remove(world.oracle.ask(Request(first.name, "remove", GONE, None)), GONE))
    world.schedule.run_until(90_000)
    assert versions(first, GONE)[0].state is State.DELETED
    return world


def put(world: World, node: SimNode, name: str, number: int) -> None:
    digest = bytes([number]) * 32
    request = world.oracle.ask(Request(node.name, "put", name, digest, 0, world.schedule.now_ms + 60_000))
    node.handle(Put(request, name, digest, digest, 1_000, 0o644, Inline(digest)))


def versions(node: SimNode, name: str) -> tuple[Record, ...]:
    return node.disk.catalogue.versions(name)


def away_node(world: World) -> SimNode:
    return world.nodes[max(world.nodes)]


def after_125_days(world: World) -> None:
    """Everybody else has been restarted meanwhile, as clocks move in this simulator."""
    for node in world.nodes.values():
        node.clock_offset_ms += 125 * DAY_MS
        if node is not away_node(world):
            node.crash(power=False)
            node.start()
    world.schedule.run_until(world.schedule.now_ms + 60_000)
    assert all(versions(node, GONE) == () for node in world.nodes.values() if node.up)  # the tombstone has gone, too
    world.around.network.partition({})


def test_a_node_that_joins_anew_brings_nothing_back_to_life_and_delivers_what_it_owed(world: World) -> None:
    after_125_days(world)
    away_node(world).disk.forget_cluster()
    away_node(world).start()
    world.schedule.run_until(world.schedule.now_ms + 90_000)
    assert {node.disk.catalogue.sketch().fold() for node in world.nodes.values()} == {
        away_node(world).disk.catalogue.sketch().fold()
    }
    for node in world.nodes.values():
        assert versions(node, GONE) == ()
        assert [record.name for record in versions(node, LATE)] == [LATE]
        assert [record.name for record in versions(node, KEPT)] == [KEPT]
    holders = {holding.node for holding in away_node(world).disk.catalogue.holdings(bytes([2]) * 32)}
    assert away_node(world).name in holders  # its file was not fetched again, and counts again
    assert sum(node.store.holds(bytes([3]) * 32) for node in world.nodes.values()) >= 3
    assert world.oracle.violations == []


def test_without_joining_anew_what_was_deleted_would_rise(world: World) -> None:
    """Or the test above proves nothing."""
    after_125_days(world)
    away_node(world).start()
    world.schedule.run_until(world.schedule.now_ms + 60_000)
    assert all(versions(node, GONE) for node in world.nodes.values())


# --- on a disk ---


def manifest_rows(folder: Path, node: NodeId) -> tuple[Place, ...]:
    """Write a manifest with rows of all kinds; the places in it."""
    place = Place("models/a.pth", b"d" * 32, 1, 2, 3, 4)
    own = Record("model/a.pth", 7 << 16, node, b"d" * 32, b"b" * 32, 3)
    gone = replace(own, name="model/b.pth", state=State.DELETED)
    rows = Rows((own, gone), (Holding(node, b"s" * 16, b"d" * 32, 8 << 16),), (Member("other", 9),))

    async def write() -> None:
        manifest = await Manifest.open(folder / "manifest.db", cluster="fleet", node=node)
        await manifest.apply([Batch(rows, (place,))])
        await manifest.set_scanned()
        await manifest.close()

    asyncio.run(write())
    return (place,)


def check_forgotten(folder: Path, node: NodeId, places: tuple[Place, ...]) -> None:
    async def read() -> None:
        manifest = await Manifest.open(folder / "manifest.db", cluster="fleet", node=node)
        try:
            assert manifest.versions("model/a.pth") == manifest.versions("model/b.pth") == ()
            assert manifest.holdings(b"d" * 32) == ()
            assert manifest.members() == ()
            assert manifest.sketch().fold() == (0, 0)
            assert manifest.places(b"d" * 32) == places
            assert manifest.last_hlc() == 8 << 16  # nothing new is said below what was once said
            assert manifest.boot == 2
            assert not manifest.scanned()
            assert (await manifest.queries.totals()).kinds == ()
        finally:
            await manifest.close()

    asyncio.run(read())


def test_a_manifest_forgets_the_cluster_and_keeps_its_disk(tmp_path: Path) -> None:
    places = manifest_rows(tmp_path, "b")
    assert forget_cluster(tmp_path / "manifest.db") == 2
    check_forgotten(tmp_path, "b", places)


def test_where_there_is_no_manifest_there_is_nothing_to_forget(tmp_path: Path) -> None:
    assert forget_cluster(tmp_path / "manifest.db") == 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def a(tmp_path: Path) -> Identity:
    return issuer_identity(tmp_path / "a")


def test_a_join_into_a_folder_with_a_manifest_forgets_its_rows(a: Identity, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    places = manifest_rows(folder, "b")

    async def story() -> None:
        async with Node(a) as issuer:
            issuer.listed.add("b")
            await asyncio.to_thread(join_cluster, issuer.token(), folder, "b", clock=lambda: NOW)

    run(story)
    check_forgotten(folder, "b", places)


def test_a_join_under_a_running_agent_is_refused_and_changes_nothing(a: Identity, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    folder.mkdir()

    async def story() -> None:
        async with Node(a) as issuer:
            issuer.listed.add("b")
            with (folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                with pytest.raises(JoinError, match="an agent runs on"):
                    await asyncio.to_thread(join_cluster, issuer.token(), folder, "b", clock=lambda: NOW)
            assert not (folder / "identity").exists()

    run(story)
