"""Every knob of the simulator bites: what each of them breaks is counted, or changes the outcome."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from protocol import wire
from protocol.events import Timer
from protocol.fleet import Bandwidth, Fleet, Host
from protocol.messages import Goodbye, RowsMessage
from protocol.values import Holding, Rows
from simulations.chance import between
from simulations.disks import StoreDisk
from simulations.fleets import ROUTING, Shape, invent_fleet
from simulations.frames import Frames
from simulations.links import Cut, Links, Weather
from simulations.options import FAULT_NAMES, RATES, SWARM_WEIGHTS, Options, only, swarm
from simulations.script import Action
from simulations.world import World

SHORT = Options(nodes=5, busy_ms=8_000, operations=15)


def world_of(options: Options, seed: int = 1) -> World:
    return World(options, invent_fleet(Random(seed), options.nodes, options.shape), seed)


def finished(options: Options, seed: int = 1) -> World:
    world = world_of(options, seed)
    world.run()
    assert world.oracle.violations == []
    return world


# --- faults that strike now and then ---


@pytest.mark.parametrize(
    ("fault", "knob"),
    [
        ("stall", "stalled"),
        ("freeze", "clock_frozen"),
        ("set_back", "set_back"),
        ("clog", "link_clogged"),
        ("one_way", "one_way_cut"),
        ("partition", "partition_cut"),
        ("fill", "disk_filled"),
        ("leave", "left"),
        ("clock", "clock_jumped"),
        ("power", "power_lost"),
        ("kill", "killed"),
        ("io", "commit_failed"),
        ("fuse", "crash_between_effects"),
    ],
)
def test_a_fault_that_is_drawn_strikes(fault: str, knob: str) -> None:
    options = replace(SHORT, faults_per_second=2.0, weights=((fault, 1),), clock_ms_max=60_000)
    assert finished(options).around.bites.get(knob, 0) > 0
    assert knob not in finished(SHORT).around.bites


@pytest.mark.parametrize(
    ("field", "value", "knob"),
    [
        ("loss", 0.02, "session_lost"),
        ("packet_loss", 0.2, "packet_sent_again"),
        ("skew_ms_max", 60_000, "clock_skewed"),
        ("stream_breaks", 0.3, "stream_broken"),
        ("stream_lies", 0.3, "wrong_bytes"),
        ("stream_stalls", 0.2, "stream_stalled"),
        ("disk_trouble", 0.3, "reserve_refused"),
    ],
)
def test_a_rate_that_is_set_strikes(field: str, value: float, knob: str) -> None:
    assert finished(replace(SHORT, **{field: value})).around.bites.get(knob, 0) > 0
    assert knob not in finished(SHORT).around.bites


def test_every_fault_that_can_be_drawn_or_set_is_known_by_name() -> None:
    assert set(FAULT_NAMES) == {kind for kind, _ in SWARM_WEIGHTS} | set(RATES)
    options = swarm(Random(3), None)
    assert only(options, ()).weights == ()
    assert [getattr(only(options, ()), field) for field in RATES.values()] == [0] * len(RATES)


def test_a_storm_takes_every_ephemeral_machine_and_tells_every_second_one() -> None:
    options = replace(SHORT, nodes=9, shape=Shape(ephemeral_share=1 / 3), storm=True, busy_ms=25_000)
    world = finished(options)
    ephemeral = [name for name in world.nodes if world.fleet.host(name).ephemeral]
    assert len(ephemeral) == 3
    assert [name for name in sorted(world.nodes) if world.nodes[name].gone] == sorted(ephemeral)
    assert world.around.bites["notice_given"] == 1


def test_an_upgrade_restarts_every_node_and_the_others_bear_what_it_says() -> None:
    world = finished(replace(SHORT, upgrade=True, busy_ms=40_000, operations=40))
    assert all(node.newer for node in world.nodes.values())
    assert world.around.bites["upgraded"] == world.around.bites["left"] == len(world.nodes)
    assert world.around.bites["unknown_message"] > 0
    later = [key for key, record in world.oracle.records.items() if record.meta]
    assert later
    for node in world.verdict.living():  # what a later version adds to a record survives nodes that do not know it
        assert all(node.disk.catalogue.record(key) in (None, world.oracle.records[key]) for key in later)


# --- processes and clocks ---


def started(nodes: int = 4) -> World:
    """A small world whose nodes have met."""
    world = world_of(replace(SHORT, nodes=nodes))
    for node in world.nodes.values():
        node.start()
    world.schedule.run_until(3_000)
    return world


def test_a_stalled_process_does_nothing_and_then_everything_in_its_order() -> None:
    world = started()
    node = world.nodes["node-00"]
    done: list[int] = []
    node.stall(5_000, clock_too=False)
    node.later(10, done.append, 1)
    node.later(20, done.append, 2)
    world.schedule.run_until(7_999)
    assert done == []
    world.schedule.run_until(8_001)
    assert done == [1, 2]


def test_a_frozen_clock_stands_still_and_a_stalled_one_goes_on() -> None:
    world = started()
    frozen, stalled = world.nodes["node-00"], world.nodes["node-01"]
    frozen_ms, stalled_ms = frozen.clock_ms(), stalled.clock_ms()
    frozen.stall(4_000, clock_too=True)
    stalled.stall(4_000, clock_too=False)
    world.schedule.run_until(world.schedule.now_ms + 5_000)
    assert frozen.clock_ms() == frozen_ms + 1_000
    assert stalled.clock_ms() == stalled_ms + 5_000


def test_a_process_that_stands_still_for_long_loses_its_sessions_and_finds_them_again() -> None:
    world = started()
    node, peer = world.nodes["node-00"], world.nodes["node-01"]
    assert node.name in peer.replica.members.alive
    node.stall(30_000, clock_too=False)
    world.schedule.run_until(world.schedule.now_ms + 15_000)
    assert node.name not in peer.replica.members.alive
    world.schedule.run_until(world.schedule.now_ms + 45_000)
    assert node.name in peer.replica.members.alive


def test_a_crash_ends_a_stall() -> None:
    world = started()
    node = world.nodes["node-00"]
    node.stall(60_000, clock_too=False)
    node.handle(Timer("tick"))
    node.crash(power=False)
    node.start()
    assert not node.stalled


def test_a_machine_that_is_set_back_has_the_files_and_rows_of_its_image() -> None:
    world = started()
    node = world.nodes["node-00"]
    node.watching.user_writes("models/a.pth", b"a" * 32, 100)
    world.schedule.run_until(world.schedule.now_ms + 5_000)
    node.take_image()
    node.watching.user_writes("models/b.pth", b"b" * 32, 100)
    world.schedule.run_until(world.schedule.now_ms + 5_000)
    assert node.disk.catalogue.versions("model/models/b.pth") or node.disk.catalogue.versions("model/b.pth")
    assert node.set_back()
    assert not node.up
    assert node.store.holds(b"a" * 32)
    assert not node.store.holds(b"b" * 32)
    assert {record.digest for record in node.disk.catalogue.tables.records.values()} == {b"a" * 32}


# --- networks ---


def links(equal_ms: int = 0) -> Links:
    found = Links(7, Random(1), equal_ms)
    found.domains |= {"a": "x", "b": "x", "c": "y"}
    return found


def test_latency_is_drawn_by_domain_and_jitters() -> None:
    near = [links().latency_ms("a", "b") for _ in range(5)]
    far = [links().latency_ms("a", "c") for _ in range(5)]
    assert max(near) <= 4
    assert min(far) >= 10
    world = links()
    assert len({world.latency_ms("a", "c") for _ in range(50)}) > 1
    assert world.base_ms("x", "y") == links().base_ms("y", "x")


def test_equal_latencies_are_equal() -> None:
    assert {links(20).latency_ms(a, b) for a in "abc" for b in "abc"} == {20}
    assert links(20).mean_ms() == 20


def test_a_cut_of_one_way_stops_one_way_only() -> None:
    weather = Weather(cuts=[Cut({"a": None}, {"b": None}, both=False)])
    assert not weather.passes("a", "b")
    assert weather.passes("b", "a")
    weather.cuts = [Cut({"a": None}, {"b": None})]
    assert not weather.passes("b", "a")
    assert weather.passes("a", "c")
    weather.heal()
    assert weather.passes("a", "b")


def test_across_a_cut_nobody_meets_and_those_outside_of_it_meet_everybody() -> None:
    world = started(6)
    names = sorted(world.nodes)
    cut = Cut({names[0]: None}, {names[1]: None})
    world.around.network.cut(cut)
    world.schedule.run_until(world.schedule.now_ms + 20_000)
    network = world.around.network
    assert not network.connected(names[0], names[1])
    assert not network.reachable(names[0], names[1])
    assert network.reachable(names[0], names[2])
    assert any(network.connected(names[0], name) for name in names[2:])
    network.mend(cut)
    assert network.reachable(names[0], names[1])


def test_what_a_clogged_link_carries_is_late_and_not_lost() -> None:
    world = started()
    network = world.around.network
    heard: list[int] = []
    node = world.nodes["node-01"]
    node.handle = lambda event: heard.append(world.schedule.now_ms)  # type: ignore[method-assign]
    network.clog("node-00", "node-01", world.schedule.now_ms + 5_000)
    begun_ms = world.schedule.now_ms
    network.send("node-00", "node-01", RowsMessage(Rows(holdings=(Holding("node-00", b"s" * 16, b"d" * 32, 1),))))
    world.schedule.run_until(begun_ms + 4_999)
    before = len(heard)
    world.schedule.run_until(begun_ms + 5_001)
    assert len(heard) > before


def test_all_that_a_node_sends_shares_its_egress_limit() -> None:
    hosts = {
        name: Host(name, f"10.0.0.{index}:7946", bandwidth_limit=Bandwidth.megabytes(10))
        for index, name in enumerate(("a", "b", "c"), 1)
    }
    world = World(SHORT, Fleet("simulated", ROUTING, hosts=hosts), 1)
    first_ms = world.around.streams._paced_ms("a", 10_000_000)
    assert first_ms == pytest.approx(1_000, abs=2)
    assert world.around.streams._paced_ms("a", 10_000_000) == pytest.approx(2_000, abs=4)
    assert world.around.streams._paced_ms("b", 10_000_000) == first_ms


# --- the wire ---


def test_a_row_that_came_through_once_is_shared_and_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = Frames({})
    message = RowsMessage(Rows(holdings=(Holding("a", b"s" * 16, b"d" * 32, 1),)))
    assert frames.through(message) == (wire.encode(message), message)
    monkeypatch.setattr(wire, "decode", lambda frame: pytest.fail("decoded twice"))
    again = RowsMessage(Rows(holdings=message.rows.holdings))
    assert frames.through(again)[1] is again


def test_a_receiver_gets_what_was_decoded_where_the_wire_changes_it() -> None:
    assert Frames({}).through(Goodbye("x" * 600))[1] == Goodbye("x" * 499 + "…")


def test_a_later_version_says_more_and_is_understood_all_the_same() -> None:
    bites: dict[str, int] = {}
    message = RowsMessage(Rows(holdings=(Holding("a", b"s" * 16, b"d" * 32, 1),)))
    frame, decoded = Frames(bites).through(message, newer=True)
    assert decoded == message
    assert len(frame) > len(wire.encode(message))
    assert b"what a later version says" in frame
    assert bites == {"unknown_message": 1}


# --- disks ---


def test_bytes_of_a_digest_count_once_and_are_found_wherever_they_lie() -> None:
    store = StoreDisk(b"s" * 16, shared=False, capacity_bytes=1_000)
    store.write("a", b"1" * 32, 100, 0)
    store.write("b", b"1" * 32, 100, 0)
    store.write("c", b"2" * 32, 50, 0, synced_by="n")
    assert (store.used_bytes(), store.digests()) == (150, 2)
    assert store.holds(b"1" * 32)
    assert not store.holds(b"2" * 32)  # its rename is not durable yet
    store.write("a", b"3" * 32, 10, 0)
    store.remove("b")
    assert (store.used_bytes(), store.paths_of(b"1" * 32), store.holds(b"3" * 32)) == (60, [], True)


def test_a_power_cut_takes_back_a_rename_that_was_not_synced() -> None:
    survived = set()
    for seed in range(20):
        store = StoreDisk(b"s" * 16, shared=False, capacity_bytes=1_000)
        store.write("a", b"1" * 32, 100, 0)
        store.write("a", b"2" * 32, 50, 0, synced_by="n")
        store.crash("n", True, Random(seed), 1)
        survived.add((store.holds(b"1" * 32), store.holds(b"2" * 32), store.used_bytes()))
    assert survived == {(True, False, 100), (False, True, 50)}


def test_draws_are_those_of_randint() -> None:
    ours, theirs = Random(5), Random(5)
    bounds = [(0, 0), (1, 3), (0, 90), (200, 1_600), (-60_000, 60_000)] * 50
    assert [between(ours, *pair) for pair in bounds] == [theirs.randint(*pair) for pair in bounds]


# --- fleets ---


def test_shapes_of_fleets() -> None:
    fleet = invent_fleet(Random(1), 12, Shape(ephemeral_share=0.5, nfs_size=3, domains=2))
    groups: dict[str, list[str]] = {}
    for name, host in fleet.hosts.items():
        if host.nfs_group:
            groups.setdefault(host.nfs_group, []).append(name)
    assert sum(host.ephemeral for host in fleet.hosts.values()) == 6
    assert {len(members) for members in groups.values()} == {3}
    assert all(len({fleet.host(name).own_domain for name in members}) == 1 for members in groups.values())


def test_a_script_halves_the_fleet_and_mends_it() -> None:
    world = finished(replace(SHORT, script=(Action("halve", 2_000, 6_000),)))
    assert world.around.bites["partition_cut"] > 0
    assert world.around.network.weather.cuts == []
