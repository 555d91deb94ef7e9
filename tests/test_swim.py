"""Membership: who is believed alive, in a world of virtual time. Seconds here are virtual."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from random import Random

import pytest

from protocol.circle import HEALTH_MAX, TICK_MS
from protocol.claims import (
    REFUTATION_BITS,
    Ack,
    Changed,
    Claim,
    Claims,
    NeedSession,
    Output,
    Ping,
    PingRequest,
    Questions,
    Say,
    Standing,
    Twin,
    Verdict,
    ViewPage,
    first_incarnation,
)
from protocol.rings import Rings
from protocol.seeking import REAP_MS
from protocol.swim import Swim
from protocol.view import Base, Entry
from tests.swimming import DOMAINS, World, domain_of, names

ALIVE, SUSPECT, DEAD, LEFT = Standing.ALIVE, Standing.SUSPECT, Standing.DEAD, Standing.LEFT


def world(count: int, seed: int = 1) -> World:
    """A settled fleet after some seconds."""
    settled = World(seed).settled(count)
    settled.run(5)
    return settled


def boot_of(life_incarnation: int) -> int:
    return life_incarnation >> REFUTATION_BITS


# --- deaths ---


@pytest.mark.parametrize("way", ["kill", "power_off"])
def test_a_crash_is_known_to_all_within_20_seconds_and_nobody_else_is_thought_dead(way: str) -> None:
    w = world(150)
    for victim in ("n0003", "n0077"):
        getattr(w, way)(victim)
        w.run_until(lambda victim=victim: w.all_see(victim, DEAD), 20)  # type: ignore[misc]
    w.run(20)
    assert w.agree()
    assert {node for _, _, node in w.deaths()} == {"n0003", "n0077"}


def test_a_third_of_the_fleet_dies_at_once_and_the_rest_know_exactly_whom_they_lost() -> None:
    w = world(100)
    for victim in w.random.sample(names(100), 33):
        w.power_off(victim)
    w.run_until(w.agree, 40)
    dead = {life.name for life in w.lives.values() if not life.up}
    assert {node for _, _, node in w.deaths()} == dead


def test_of_two_nodes_each_learns_of_the_others_death() -> None:
    w = world(2)
    w.kill("n0000")
    w.run_until(lambda: w.believes("n0001", "n0000") is DEAD, 20)


def test_nodes_that_stall_for_five_seconds_are_never_thought_dead() -> None:
    """A tenth of them at a time, for four node-hours: Lifeguard's case."""
    w = world(50, seed=4)
    stalls = 0

    def storm() -> None:
        nonlocal stalls
        for node in w.random.sample([life.name for life in w.up() if not life.stalled], 5):
            stalls += 1
            w.stall(node, 5)
        w.after(5_001, storm)

    storm()
    w.run(290)
    assert stalls >= 280
    assert any(change.new is SUSPECT for life in w.up() for _, change in life.changes)  # the stalls bite
    assert w.deaths() == []


def test_a_stall_that_outlasts_every_patience_is_a_death_and_then_is_not() -> None:
    w = world(30)
    w.stall("n0004", 40)
    w.run_until(lambda: w.all_see("n0004", DEAD), 20)
    w.run_until(w.agree, 40)
    assert {node for _, _, node in w.deaths()} == {"n0004"}, "who was stalled accuses nobody of its own absence"


# --- refutation ---


def test_a_suspect_refutes_by_raising_its_own_incarnation() -> None:
    w = world(30)
    before = w.lives["n0004"].swim.incarnation
    w.stall("n0004", 6)
    w.run_until(lambda: any(w.believes(life.name, "n0004") is SUSPECT for life in w.up()), 6)
    w.run_until(lambda: w.all_see("n0004", ALIVE), 10)
    after = w.lives["n0004"].swim.incarnation
    assert before < after < before + 100
    assert w.deaths() == []
    w.run(20)
    assert {life.swim.view.get("n0004").incarnation for life in w.up() if life.name != "n0004"} == {after}  # type: ignore[union-attr]


def test_nobody_but_its_owner_ever_raises_an_incarnation() -> None:
    w = world(40)
    for victim in ("n0001", "n0002"):
        w.stall(victim, 8)
    w.kill("n0009")
    w.run(60)
    for life in w.up():
        assert life.incarnations == sorted(life.incarnations)
        for other in w.lives.values():
            entry = life.swim.view.get(other.name)
            assert entry is None or entry.incarnation <= other.swim.incarnation


# --- links that lose ---


def test_a_link_that_loses_one_way_is_bridged_by_others() -> None:
    w = world(40)
    prober = "n0000"
    target = w.lives[prober].swim.circle.targets()[0]
    w.lost = lambda sender, receiver: (sender, receiver) == (target, prober)
    w.run(120)
    assert w.deaths() == []
    assert [change for life in w.up() for _, change in life.changes] == [], "nobody is even suspected"


def test_a_node_that_nobody_hears_is_dead_to_them_until_it_is_heard() -> None:
    w = world(40)
    w.lost = lambda sender, receiver: sender == "n0005"
    w.run_until(lambda: w.all_see("n0005", DEAD), 20)
    w.lost = lambda sender, receiver: False
    w.run_until(w.agree, 60)
    assert {node for _, by, node in w.deaths() if by != "n0005"} == {"n0005"}


def test_a_node_that_hears_nobody_doubts_itself_and_persuades_nobody() -> None:
    w = world(40)
    w.lost = lambda sender, receiver: receiver == "n0005"
    w.run(60)
    assert w.lives["n0005"].swim.health == HEALTH_MAX
    assert {(by, node) for _, by, node in w.deaths() if node != "n0005"} == set()


def test_two_halves_that_were_cut_apart_for_two_minutes_find_each_other() -> None:
    w = world(50)
    w.partition({node: at % 2 for at, node in enumerate(names(50))})
    w.run(120)
    for life in w.up():
        mine = {node for node in names(50) if int(node[1:]) % 2 == int(life.name[1:]) % 2}
        assert {node for node in names(50) if life.swim.is_alive(node)} == mine
    w.partition({})
    healed_ms = w.now_ms
    assert w.run_until(w.agree, 30) <= 30
    w.run(60)
    assert w.agree()
    assert [death for death in w.deaths() if death[0] > healed_ms] == [], "what the other side says is asked about"


def test_a_single_node_that_was_cut_off_alone_comes_back() -> None:
    w = world(40)
    w.partition({"n0007": 1})
    w.run(300)
    assert w.all_see("n0007", DEAD)
    w.partition({})
    w.run_until(w.agree, 40)


# --- goodbye ---


def test_goodbye_is_known_to_all_at_once_and_suspected_by_nobody() -> None:
    w = world(100)
    w.leave("n0042")
    w.run_until(lambda: w.all_see("n0042", LEFT), 3)
    w.run(30)
    assert w.all_see("n0042", LEFT)
    news = [change.new for life in w.up() for _, change in life.changes if change.node == "n0042"]
    assert set(news) == {LEFT}


def test_who_left_comes_back_with_its_next_boot() -> None:
    w = world(30)
    w.leave("n0004")
    w.run(20)
    w.start("n0004", boot=2)
    w.run_until(w.agree, 20)


# --- lives ---


def test_a_restart_is_a_new_life_above_the_old_one() -> None:
    w = world(40)
    w.kill("n0004")
    w.run(2)
    w.start("n0004", boot=2)
    w.run_until(w.agree, 20)
    w.run(20)
    seen = {life.swim.view.get("n0004").incarnation for life in w.up() if life.name != "n0004"}  # type: ignore[union-attr]
    assert seen == {w.lives["n0004"].swim.incarnation}
    assert {boot_of(incarnation) for incarnation in seen} == {2}
    assert w.deaths() == []


def test_a_machine_that_lost_power_and_is_back_before_its_sessions_end_is_let_in() -> None:
    w = world(40)
    w.power_off("n0004")
    w.run(4)
    w.start("n0004", boot=2)
    w.run_until(w.agree, 20)
    verdicts = [verdict for life in w.up() for verdict in life.verdicts if verdict.peer == "n0004"]
    assert verdicts
    assert all(verdict.admitted for verdict in verdicts)
    assert w.deaths() == []


@pytest.mark.parametrize("away_seconds", [1, 30])
def test_a_node_restored_from_an_old_snapshot_raises_itself_above_what_is_remembered(away_seconds: int) -> None:
    """It is remembered as alive, or as dead."""
    w = world(40)
    w.kill("n0004")
    w.run(2)
    w.start("n0004", boot=9)
    w.run(30)
    w.kill("n0004")
    w.run(away_seconds)
    w.start("n0004", boot=3)
    w.run_until(w.agree, 30)
    w.run(20)
    assert w.agree()
    assert w.lives["n0004"].swim.incarnation > first_incarnation(9)
    assert w.lives["n0004"].twins == [], "a memory is no twin"


def test_the_incarnation_of_a_life_begins_above_every_earlier_one() -> None:
    assert first_incarnation(2) > first_incarnation(1) + (1 << REFUTATION_BITS) - 1
    assert first_incarnation((1 << 43) - 1) < 1 << 63, "fits SQLite's integers and the wire"


# --- twins ---


def test_a_copy_of_a_running_machine_is_refused_by_those_who_know_the_original() -> None:
    w = world(6)  # every peer has a session with the original
    twin = w.start("n0004", boot=2, replace=False)
    w.run(30)
    refusals = [v for life in w.up() for v in life.verdicts if v.peer == "n0004" and v.instance == twin.instance]
    assert refusals
    assert not any(verdict.admitted for verdict in refusals)
    assert "another machine runs as n0004" in refusals[0].why
    assert twin.sessions == {}
    assert w.all_see("n0004", ALIVE)
    assert w.lives["n0004"].up


@pytest.mark.parametrize("boot", [1, 2, 7])
def test_a_copy_that_is_let_in_somewhere_meets_its_original_and_yields(boot: int) -> None:
    w = world(100)
    w.run(90)
    original = w.lives["n0004"]
    twin = w.start("n0004", boot=boot, replace=False)
    stranger = next(life for life in w.up() if "n0004" not in life.sessions and life is not original)
    w.knock(twin, stranger)
    w.run(40)
    assert not twin.up
    assert [t.yields for t in twin.twins] == [True]
    assert original.up
    assert not any(t.yields for t in original.twins)
    w.run(20)
    assert w.agree()
    instances = {life.swim.view.get("n0004").instance for life in w.up() if life is not original}  # type: ignore[union-attr]
    assert instances == {original.instance}


def test_two_old_copies_that_meet_when_a_partition_heals_report_each_other_and_do_not_flood() -> None:
    w = world(30)
    side = {node: int(node >= "n0015") for node in names(30)}
    w.partition(side)
    w.run(60)
    original = w.lives["n0004"]
    twin = w.start("n0004", boot=2)  # on the far side, and found there under its name
    original.side, twin.side = 0, 1
    w.run(120)
    assert original.up
    original.side = twin.side = 0
    w.partition({})
    w.run(100)
    assert original.twins or twin.twins
    assert not any(t.yields for t in original.twins + twin.twins)
    assert boot_of(original.swim.incarnation) == boot_of(twin.swim.incarnation) == 2
    assert max(original.swim.incarnation, twin.swim.incarnation) - first_incarnation(2) < 2_000, "no race"


def test_an_old_node_answers_its_rival_at_most_once_in_ten_seconds() -> None:
    swim = alone_with(4)
    peer = swim.kept()[0]
    answering(swim, range(70))
    twins, raised, seen = 0, 0, swim.incarnation
    for at in range(100):
        rival = Claim("n0000", ALIVE, swim.incarnation + 1, 99)
        twins += sum(isinstance(o, Twin) for o in swim.received(peer, Claims((rival,)), 70_000 + 100 * at))
        raised, seen = raised + (swim.incarnation != seen), swim.incarnation
    assert (twins, raised) == (1, 2)  # the first might have been a memory
    answering(swim, range(80, 82))
    assert swim.incarnation > seen, "and stays above in the end"


# --- local health ---


def alone_with(peers: int) -> Swim:
    """One machine that believes so many others alive, with sessions to those it keeps."""
    nodes = names(peers + 1)
    base = Base.build({node: Entry(ALIVE, 1 << 20, 7) for node in nodes})
    swim = Swim("n0000", 7, 1, Rings.build([(node, domain_of(node)) for node in nodes]), Random(1), base)
    for peer in swim.kept():
        swim.session_up(peer, 1 << 20, 7, 0)
    return swim


def test_a_lagging_event_loop_costs_health_and_answered_probes_bring_it_back() -> None:
    swim = alone_with(8)
    swim.tick(0)
    assert swim.health == 0
    swim.tick(TICK_MS, lag_ms=600)
    assert swim.health == 1
    swim.tick(8 * TICK_MS)  # six seconds late: nobody measured that, but the clock shows it
    assert swim.health >= 3
    now_ms = 8 * TICK_MS
    for _ in range(60):
        now_ms += TICK_MS
        for out in swim.tick(now_ms):
            if isinstance(out, Say) and isinstance(out.message, Ping):
                swim.received(out.peer, Ack(out.message.number), now_ms)
    assert swim.health == 0


def test_time_that_a_node_did_not_live_through_is_no_time_for_others_to_answer() -> None:
    swim = alone_with(8)
    swim.tick(0)
    out = [o for at in range(1, 4) for o in swim.tick(at * TICK_MS)]
    assert any(isinstance(o, Say) and isinstance(o.message, PingRequest) for o in out)
    late = swim.tick(600_000) + swim.tick(601_000)
    assert not any(isinstance(o, Changed) and o.new is DEAD for o in late)


def test_each_of_the_three_next_on_ring_a_is_probed_in_turn() -> None:
    swim = alone_with(8)
    pinged = [o.peer for o in answering(swim, range(9)) if isinstance(o, Say) and isinstance(o.message, Ping)]
    assert sorted(pinged) == sorted(swim.circle.targets() * 3)


def test_the_less_healthy_a_node_the_more_seldom_it_probes() -> None:
    swim = alone_with(8)
    swim.tick(0)
    for _ in range(4):
        swim.circle.worsen(2)
    probes = [o for at in range(1, 19) for o in swim.tick(at * TICK_MS) if isinstance(o, Say)]
    assert sum(isinstance(o.message, Ping) for o in probes) <= 4


# --- joining, absence ---


def test_a_fleet_that_starts_from_its_hosts_file_alone_comes_together() -> None:
    w = World(2)
    w.rings = Rings.build([(node, domain_of(node)) for node in names(60)])
    for node in names(60):
        w.start(node)
    w.run_until(w.agree, 20)
    w.run(30)
    assert w.agree()
    assert w.deaths() == []


def test_a_node_that_can_only_dial_out_is_a_full_member() -> None:
    w = World(2)
    w.rings = Rings.build([(node, domain_of(node)) for node in names(30)])
    w.undialable = {"n0000", "n0029"}
    for node in names(30):
        w.start(node)
    w.run_until(w.agree, 30)
    w.run(60)
    assert w.agree()
    assert w.deaths() == []
    w.kill("n0000")
    w.run_until(lambda: w.all_see("n0000", DEAD), 20)
    w.start("n0000", boot=2)
    w.run_until(w.agree, 40)


def test_a_node_outside_the_hosts_file_joins_by_being_heard_and_is_probed_like_others() -> None:
    w = world(30)
    w.start("n0900")
    w.run_until(lambda: w.all_see("n0900", ALIVE), 20)
    w.run(30)
    w.power_off("n0900")
    w.run_until(lambda: w.all_see("n0900", DEAD), 20)


def test_an_ephemeral_node_that_stays_away_for_an_hour_is_reaped_and_a_listed_one_never() -> None:
    w = world(5)
    w.ephemeral = {"n0900"}
    for life in w.up():
        life.swim._seeking._ephemeral = w.ephemeral.__contains__
    w.start("n0900")
    w.run(20)
    w.kill("n0900")
    w.kill("n0004")
    w.run(REAP_MS / 1000 - 60)
    assert w.all_see("n0900", DEAD)
    w.run(180)
    assert all(w.believes(life.name, "n0900") is None for life in w.up())
    assert w.all_see("n0004", DEAD)
    reaped = [c for life in w.up() for _, c in life.changes if c.new is None]
    assert {(c.node, c.old) for c in reaped} == {("n0900", DEAD)}
    w.run(120)
    assert all(w.believes(life.name, "n0900") is None for life in w.up()), "nobody brings it back as dead"
    w.start("n0900", boot=2)
    w.run_until(lambda: w.all_see("n0900", ALIVE), 40)


def test_the_smaller_id_dials_and_the_greater_when_that_does_not_help() -> None:
    nodes = names(3)
    base = Base.build({node: Entry(ALIVE, 1 << 20, 7) for node in nodes})
    swim = Swim("n0001", 7, 1, Rings.build([(node, domain_of(node)) for node in nodes]), Random(1), base)
    wanted = [
        [o.node for o in swim.tick(at * TICK_MS) if isinstance(o, NeedSession) and o.why == "a ring neighbour"]
        for at in range(5)
    ]
    assert wanted == [["n0002"], ["n0002"], ["n0002"], ["n0000", "n0002"], ["n0000", "n0002"]]


def test_the_dead_are_dialled_for_ever_with_pauses_that_stay_short() -> None:
    swim = alone_with(3)
    swim.tick(0)
    swim.heard([Claim("n0001", DEAD, 1 << 20, 7)], 0)
    swim.session_down("n0001", 0)
    dials = [
        at
        for at in range(1, 4_000)
        for o in swim.tick(at * TICK_MS)
        if isinstance(o, NeedSession) and o.node == "n0001"
    ]
    gaps = [later - earlier for earlier, later in pairwise(dials)]
    assert dials[0] <= 2
    assert max(gaps) <= 30
    assert dials[-1] > 3_900


def test_what_a_flood_did_not_bring_the_comparison_of_views_does() -> None:
    w = world(60)
    deafened = "n0030"
    w.drops = lambda sender, receiver, message: isinstance(message, Claims) and receiver == deafened
    w.kill("n0004")
    w.run_until(lambda: all(w.believes(life.name, "n0004") is DEAD for life in w.up() if life.name != deafened), 20)
    w.run(4)
    assert w.believes(deafened, "n0004") is DEAD


def carry(swims: dict[str, Swim], outputs: list[tuple[str, Output]], now_ms: int) -> int:
    """Pass messages between machines until there are none; returns how many claims that took in pages."""
    paged = 0
    while outputs:
        sender, out = outputs.pop(0)
        if isinstance(out, Say) and out.peer in swims:
            paged += len(out.message.claims) if isinstance(out.message, ViewPage) else 0
            answers = swims[out.peer].received(sender, out.message, now_ms)
            outputs += [(out.peer, answer) for answer in answers]
    return paged


def test_two_views_that_differ_exchange_what_differs_and_no_more() -> None:
    nodes = names(600)
    base = Base.build({node: Entry(ALIVE, 1 << 20, 7) for node in nodes})
    rings = Rings.build([(node, domain_of(node)) for node in nodes])
    swims = {node: Swim(node, 7, 1, rings, Random(1), base) for node in ("n0000", "n0001")}
    swims["n0000"].heard([Claim("n0300", DEAD, 1 << 20, 7), Claim("n0900", ALIVE, 1 << 20, 3)], 0)
    met = [
        (own, out)
        for own, peer in (("n0000", "n0001"), ("n0001", "n0000"))
        for out in swims[own].session_up(peer, 1 << 20, 7, 0)
    ]
    assert 0 < carry(swims, met, 10) < 100  # two buckets of 64, from both sides
    assert swims["n0001"].view.get("n0300").standing is DEAD  # type: ignore[union-attr]
    assert swims["n0001"].is_alive("n0900")
    again = [("n0000", out) for out in swims["n0000"].session_up("n0001", 1 << 20, 7, 20_000)]
    assert carry(swims, again, 20_010) == 0


def test_any_of_the_dead_is_dialled_now_and_then_and_somebody_at_once_by_who_is_alone() -> None:
    swim = alone_with(60)
    far = next(node for node in names(61)[1:] if node not in swim.kept())
    swim.tick(0)
    swim.heard([Claim(far, DEAD, 1 << 20, 7)], 0)
    wanted = [o for at in range(1, 40) for o in swim.tick(at * TICK_MS) if isinstance(o, NeedSession)]
    assert far in {need.node for need in wanted}
    lonely = Swim("n0000", 7, 1, Rings.build([]), Random(1), Base.build({"n0001": Entry(DEAD, 0)}))
    assert all(NeedSession("n0001", "is it back?") in lonely.tick(at * TICK_MS) for at in range(9))


# --- what is said of the dead, and believed ---


def answering(swim: Swim, seconds: range) -> list[Output]:
    """Ticks in which every probe is answered."""
    out: list[Output] = []
    for at in seconds:
        said = swim.tick(at * TICK_MS)
        for o in said:
            if isinstance(o, Say) and isinstance(o.message, Ping):
                swim.received(o.peer, Ack(o.message.number), at * TICK_MS)
        out += said
    return out


def test_who_speaks_while_it_counts_as_suspect_or_dead_is_told_so_once_a_second() -> None:
    swim = alone_with(8)
    peer = swim.kept()[-1]
    swim.heard([Claim(peer, SUSPECT, 1 << 20, 7, "n0005")], 10)
    said = swim.received(peer, Ping(1), 20) + swim.received(peer, Ping(2), 30)
    told = [o.message for o in said if isinstance(o, Say) and isinstance(o.message, Claims) and o.peer == peer]
    assert told == [Claims((Claim(peer, SUSPECT, 1 << 20, 7, "n0000"),))]
    swim.session_down(peer, 40)
    swim.heard([Claim(peer, DEAD, 1 << 20, 7)], 50)
    swim.tick(TICK_MS)
    assert Say(peer, Claims((Claim(peer, DEAD, 1 << 20, 7),))) in swim.session_up(peer, 1 << 20, 7, 1_100)


def test_a_death_of_somebody_who_just_spoke_is_not_believed_and_goes_to_whom_it_concerns() -> None:
    swim = alone_with(30)
    answering(swim, range(5))
    one, other = swim.circle.targets()[:2]
    death = Claim(one, DEAD, 1 << 20, 7)
    assert swim.received(other, Claims((death,)), 5_000) == [Say(one, Claims((death,)))]
    assert swim.is_alive(one)


@pytest.mark.parametrize(("boot", "away_seconds", "said_ms"), [(2, 1, 900), (2, 1, 0), (1, 1, 0), (1, 200, 0)])
def test_what_a_returning_peer_says_of_the_dead_is_asked_about_first_and_believed_when_nobody_answers(
    boot: int, away_seconds: int, said_ms: int
) -> None:
    """Also in the moment of its return, and while it counts as dead itself (boot 1: it has refuted nothing yet)."""
    swim = alone_with(60)
    answering(swim, range(5))
    returned = swim.kept()[0]
    far = next(node for node in names(61)[1:] if node not in swim.kept())
    swim.session_down(returned, 5_000)
    swim.heard([Claim(returned, DEAD, 1 << 20, 7)], 5_000)
    back = 6 + away_seconds
    answering(swim, range(6, back))
    swim.session_up(returned, boot << 20, 6 + boot, back * 1000)
    death = Claim(far, DEAD, 1 << 20, 7)
    asked = swim.received(returned, Claims((death,)), back * 1000 + said_ms) + swim.wake(back * 1000 + 950)
    assert {o.peer for o in asked if isinstance(o, Say) and o.message == Questions((death,))}
    assert swim.is_alive(far)
    answering(swim, range(back + 1, back + 14))
    assert swim.is_alive(far)
    answering(swim, range(back + 14, back + 25))
    assert not swim.is_alive(far)


def test_answers_that_waited_unread_through_a_stall_count() -> None:
    """The tick comes first when a process runs again: nothing may expire in it."""

    def asking(until: int) -> tuple[Swim, list[Output]]:
        swim = alone_with(1)
        return swim, [out for at in range(until) for out in swim.tick(at * TICK_MS)]

    accused_at = next(at for at in range(20) if any(isinstance(o, Changed) for o in asking(at + 1)[1]))
    swim, out = asking(accused_at)
    late_ms = accused_at * TICK_MS + 5_000
    assert not any(isinstance(o, Changed) for o in swim.tick(late_ms))
    for ping in [o.message for o in out if isinstance(o, Say) and isinstance(o.message, Ping)]:
        swim.received("n0001", Ack(ping.number), late_ms)
    assert not any(isinstance(o, Changed) for o in swim.tick(late_ms + TICK_MS))


# --- cost ---


def test_idle_traffic_does_not_grow_with_the_fleet() -> None:
    """Two messages a second from each node: its probe, and its answer to another's."""
    per_second = []
    for count in (30, 150):
        w = world(count)
        before = w.messages
        w.run(40)
        per_second.append((w.messages - before) / 40 / count)
    assert per_second[0] == pytest.approx(per_second[1], rel=0.05)
    assert max(per_second) <= 2.3


def test_machines_that_share_a_base_cost_a_few_kilobytes_each_however_large_the_fleet() -> None:
    nodes = names(2_000)
    rings = Rings.build([(node, domain_of(node)) for node in nodes])
    base = Base.build({node: Entry(ALIVE, 1 << 20, 7) for node in nodes})
    random = Random(1)
    tracemalloc.start()
    try:
        machines = [Swim(node, 7, 1, rings, random, base) for node in nodes[:100]]
        for machine in machines:
            for peer in machine.kept():
                machine.session_up(peer, 1 << 20, 7, 0)
            for second in range(3):
                machine.tick(second * TICK_MS)
        each_bytes = tracemalloc.get_traced_memory()[0] / len(machines)
    finally:
        tracemalloc.stop()
    assert all(machine.view.differences() == 0 for machine in machines)
    assert each_bytes < 16_000  # 10,000 of them: 160 MB


# --- determinism ---


def trace_of(seed: int) -> list[tuple[int, str, str]]:
    w = World(seed).settled(20)
    w.run(3)
    w.kill("n0003")
    w.stall("n0004", 7)
    w.partition({node: at % 2 for at, node in enumerate(names(20))})
    w.run(40)
    w.partition({})
    w.run(20)
    return [*w.trace, (w.messages, "", "")]


def test_a_seed_gives_one_run_and_another_seed_another() -> None:
    assert trace_of(3) == trace_of(3)
    assert trace_of(3) != trace_of(4)


@pytest.mark.parametrize("hash_seed", ["0", "77"])
def test_a_run_does_not_depend_on_the_hash_seed(hash_seed: str) -> None:
    program = "from tests.test_swim import trace_of; print(trace_of(5))"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(trace_of(5))


# --- bad input ---


def test_messages_from_nowhere_change_nothing() -> None:
    swim = alone_with(5)
    swim.tick(0)
    assert swim.received("n0099", Claims((Claim("n0001", DEAD, 1 << 30),)), 10) == []
    assert swim.is_alive("n0001")


def test_answers_that_nobody_asked_for_change_nothing() -> None:
    swim = alone_with(5)
    swim.tick(0)
    peer = swim.kept()[0]
    assert swim.received(peer, Ack(12_345), 10) == []
    assert swim.health == 0


def test_a_second_newcomer_is_turned_away_while_the_first_is_being_checked() -> None:
    swim = alone_with(5)
    peer = swim.kept()[0]
    asked = swim.challenged(peer, 2 << 20, 8, 0)
    assert [type(o) for o in asked] == [Say]
    verdict = swim.challenged(peer, 2 << 20, 9, 0)
    assert isinstance(verdict[0], Verdict)
    assert not verdict[0].admitted
    assert swim.session_down(peer, 10)[0] == Verdict(peer, 8, True)


def test_domains_of_the_test_fleet_are_several() -> None:
    assert len({domain_of(node) for node in names(20)}) == DOMAINS
