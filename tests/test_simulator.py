"""Seeds through the simulator: nothing promised is broken while faults strike, and all settles once they are healed."""

from __future__ import annotations

from math import log2
from pathlib import Path

import pytest

from node.config import load_fleet
from simulations import SCENARIOS, Report, run
from simulations.scenarios import UnknownScenario

CHUNK = 5  # seeds in one test, so that parallel runs share them out
FAULTS = {  # by the scenario that is quick to show them
    "crash": (
        "accepted_inline",
        "accepted_kept",
        "accepted_referenced",
        "booted_with_pending",
        "clock_jumped",
        "crash_between_effects",
        "crash_in_commit",
        "crash_in_publish",
        "dial_failed",
        "found_without_history",
        "killed",
        "place_lost",
        "power_lost",
        "put_again",
        "stream_broken",
        "user_changed",
        "user_removed",
        "wal_tail_lost",
    ),
    "first-light": ("left", "partition_cut", "session_lost", "stream_stalled", "vanished", "wrong_bytes"),
    "disk-full": ("cap_reached", "commit_failed", "disk_full", "publish_failed", "reserve_refused"),
}


def assert_kept(report: Report) -> None:
    assert report.violations == (), f"{report.reproduce}: {report.violations}"
    assert report.lost == 0
    assert report.coverage == 1.0
    assert report.accepted >= 5, f"{report.reproduce} accepted next to nothing and proves nothing"


@pytest.mark.parametrize("first", range(1, 21, CHUNK))
def test_first_light_breaks_no_promise(first: int) -> None:
    for seed in range(first, first + CHUNK):
        assert_kept(run("first-light", seed=seed))


@pytest.mark.parametrize("first", range(1, 41, CHUNK))
def test_nodes_that_die_between_any_two_effects_lose_nothing(first: int) -> None:
    for seed in range(first, first + CHUNK):
        assert_kept(run("crash", seed=seed))


@pytest.mark.parametrize("first", range(1, 11, CHUNK))
def test_full_and_failing_disks_lose_nothing(first: int) -> None:
    for seed in range(first, first + CHUNK):
        assert_kept(run("disk-full", seed=seed))


@pytest.mark.soak
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize(
    ("scenario", "first", "last"),
    [("first-light", 101, 400), ("crash", 101, 200), ("disk-full", 101, 200), ("convergence", 101, 200)],
)
def test_many_more_seeds_break_no_promise(scenario: str, first: int, last: int) -> None:
    for seed in range(first, last + 1):
        assert_kept(run(scenario, seed=seed))


def test_without_faults_everybody_knows_at_once() -> None:
    report = run("convergence", seed=1)
    assert_kept(report)
    assert report.seconds_to_full <= 60
    assert report.hops <= 2 * log2(report.nodes)  # most records take about log2 n; none may take twice as many
    assert report.copies_per_node > 1


# A seed finds its bug only as long as the code around it stays: what each of these found is its name.
@pytest.mark.parametrize(
    ("scenario", "nodes", "seed"),
    [
        pytest.param("convergence", 6, 3, id="all nodes judge alike whether the newest version is durable"),
        pytest.param("first-light", None, 5, id="a superseded file left at its path is not taken for a new version"),
        pytest.param("convergence", 6, 2, id="names of two kinds that share a path do not push each other out"),
        pytest.param("crash", None, 7, id="an offer whose sender died does not keep its digests busy"),
        pytest.param("convergence", 6, 9, id="the same bytes from another node are kept by that node too"),
        pytest.param("crash", None, 2, id="holders repair what a living origin has lost"),
        pytest.param("disk-full", None, 8, id="own artifacts published while the manifest failed leave the WAL"),
        pytest.param("disk-full", None, 10, id="what a scan found and could not take in is no news to the next scan"),
        pytest.param("crash", None, 4, id="a published file whose record was not written is no new version"),
        pytest.param("crash", None, 58, id="what a member of a group has recorded is not taken over as new"),
        pytest.param("crash", None, 9, id="members of a group make room for each other's files"),
        pytest.param("first-light", None, 107, id="who waits for a version that is superseded meanwhile is answered"),
        pytest.param("swarm", None, 1315, id="a file whose commit failed is nobody's copy"),
        pytest.param("swarm", None, 1376, id="an upload that failed does not keep its digest busy for an hour"),
        pytest.param("swarm", None, 49, id="a stamp that was logged and not committed is not given again"),
        pytest.param("swarm", None, 54, id="a stamp above a version that is ahead is not given again"),
        pytest.param("swarm", None, 12, id="a fetch whose sources have all lied once goes on"),
    ],
)
def test_a_seed_that_found_a_bug_stays_clean(scenario: str, nodes: int | None, seed: int) -> None:
    assert_kept(run(scenario, nodes, seed))


@pytest.mark.parametrize("scenario", FAULTS)
def test_every_fault_really_strikes(scenario: str) -> None:
    """Or the runs prove less than they say."""
    missing = set(FAULTS[scenario])
    for seed in range(201, 261):
        missing -= set(dict(run(scenario, seed=seed).bites))
        if not missing:
            break
    assert sorted(missing) == []


def test_a_fleet_from_a_hosts_file_can_be_rehearsed() -> None:
    hosts_file = Path(__file__).parent.parent / "distributed_hosts.yaml"
    report = run("first-light", seed=1, fleet=load_fleet(hosts_file), hosts="distributed_hosts.yaml")
    assert_kept(report)
    assert report.nodes == 9
    assert report.reproduce == "spore simulate first-light --hosts distributed_hosts.yaml --seed 1"


def test_a_report_names_the_command_that_reproduces_it() -> None:
    report = run("convergence", 3, 7)
    assert report.reproduce == "spore simulate convergence --nodes 3 --seed 7"
    assert (report.scenario, report.nodes, report.seed) == ("convergence", 3, 7)


def test_an_unknown_scenario_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownScenario, match="use one of first-light, convergence, crash, disk-full, "):
        run("no-such")
    assert list(SCENARIOS) == [
        *("first-light", "convergence", "crash", "disk-full", "partition", "spot-storm", "nfs-fleet"),
        *("deletes", "rolling-restart", "flaky-wan", "swarm", "broadcast", "rehearsal"),
    ]


@pytest.mark.parametrize("nodes", [0, 2, 10_001])
def test_a_count_of_nodes_that_cannot_be_simulated_is_refused(nodes: int) -> None:
    with pytest.raises(ValueError, match="use 3 to 10,000"):
        run("convergence", nodes)
