"""Rehearsing one's own fleet: what is asked for happens, what was lost is explained, and what would have saved it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from node.cli import rehearsing
from node.cli.commands import spore
from node.config import load_fleet
from protocol.fleet import Bandwidth, Fleet, Host, Routing
from simulations import SCENARIOS, Case, Report, Request, run, run_case, run_sampled
from simulations.remedies import remedies
from simulations.scenarios import build_case
from simulations.shrink import rules, shrink

HOSTS = Path(__file__).parent.parent / "distributed_hosts.yaml"
SWARM_SEEDS, CHUNK = 150, 5
PROGRAM = "import sys, simulations; print(simulations.run(sys.argv[1], seed=int(sys.argv[2])).trace_hash)"


def fleet_of(*names: str, **routing: Any) -> Fleet:
    """Persistent hosts in one domain each, which find each other within seconds."""
    hosts = {name: Host(name, f"10.0.0.{index}:7946", domain=f"domain-{index}") for index, name in enumerate(names, 1)}
    sooner: dict[str, Any] = {"auto_sync_interval_seconds": 10.0, "gossip_interval_seconds": 5.0}
    return Fleet("rehearsed", Routing(**sooner | routing), hosts=hosts)


def rehearsal(fleet: Fleet, *requests: Request, **more: Any) -> Case:
    return Case("rehearsal", fleet=fleet, hosts="fleet.yaml", requests=requests, operations=4, **more)


def simulate(*words: str) -> Result:
    return CliRunner().invoke(spore, ["simulate", *words], standalone_mode=False)


# --- the scenarios ---


@pytest.mark.parametrize("first", range(1, SWARM_SEEDS + 1, CHUNK))
def test_a_swarm_of_seeds_breaks_no_promise(first: int) -> None:
    for seed in range(first, first + CHUNK):
        report = run("swarm", seed=seed)
        assert report.violations == (), report.reproduce
        assert report.coverage == 1.0


@pytest.mark.parametrize(
    "scenario", ["partition", "spot-storm", "nfs-fleet", "deletes", "rolling-restart", "flaky-wan"]
)
def test_a_scenario_breaks_no_promise_and_is_what_it_says(scenario: str) -> None:
    knobs = {
        "partition": "partition_cut",
        "spot-storm": "vanished",
        "nfs-fleet": "crash_between_effects",
        "deletes": "partition_cut",
        "rolling-restart": "unknown_message",
        "flaky-wan": "packet_sent_again",
    }
    struck: set[str] = set()
    for seed in range(1, 4):
        report = run(scenario, seed=seed)
        assert report.violations == (), report.reproduce
        assert report.accepted > 10
        struck |= set(dict(report.bites))
    assert knobs[scenario] in struck


def test_every_scenario_is_described_in_a_sentence_and_can_be_run_by_name() -> None:
    for scenario, sentence in SCENARIOS.items():
        assert len(sentence.split()) > 5
        assert build_case(Case(scenario)).options.nodes >= 3


def test_an_nfs_fleet_has_groups_and_a_spot_storm_has_ephemeral_hosts() -> None:
    assert any(host.nfs_group for host in build_case(Case("nfs-fleet")).fleet.hosts.values())
    hosts = build_case(Case("spot-storm", nodes=9)).fleet.hosts.values()
    assert sum(host.ephemeral for host in hosts) == 3


@pytest.mark.parametrize(("scenario", "seed"), [("swarm", 5), ("rolling-restart", 2), ("rehearsal", 1)])
def test_a_trace_does_not_depend_on_the_hash_seed(scenario: str, seed: int) -> None:
    hashes = set()
    for hash_seed in ("0", "4242"):
        command = [sys.executable, "-c", PROGRAM, scenario, str(seed)]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        hashes.add(done.stdout.strip())
    assert hashes == {run(scenario, seed=seed).trace_hash}


def test_looking_at_a_run_does_not_change_it() -> None:
    case = Case("swarm", seed=4)
    sampled, samples = run_sampled(case)
    assert sampled.trace_hash == run_case(case).trace_hash
    assert len(samples.rows) > 10
    assert samples.rows[-1].copies_mean >= 1


# --- what is asked for ---


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request("kill", "a"), "write GLOB:SECONDS"),
        (Request("kill", "nobody-*:5"), "no host matches 'nobody-*'; the hosts are a, b, c"),
        (Request("kill", "a:soon"), "'soon' is no time; write whole seconds"),
        (Request("kill", "a:-5"), "'-5' is no time"),
        (Request("kill", "a:99999"), "write whole seconds from 0 to 3600"),
        (Request("partition", "a"), "write 'A|B' or 'A|B:FROM-TO'"),
        (Request("partition", "a|z"), "no host matches 'z'"),
        (Request("partition", "a|*"), "a is on both sides"),
        (Request("partition", "a|b:10"), "write the time as FROM-TO"),
        (Request("partition", "a|b:10-10"), "it must end after it begins"),
        (Request("fill", "z"), "no host matches 'z'"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(request_: Request, says: str) -> None:
    with pytest.raises(ValueError, match=r"^--") as refused:
        run_case(rehearsal(fleet_of("a", "b", "c"), request_))
    assert says in str(refused.value)
    assert request_.text in str(refused.value)


def test_a_rehearsal_without_faults_loses_nothing() -> None:
    report = run_case(rehearsal(fleet_of("a", "b", "c")))
    assert (report.lost, report.losses, report.violations, report.at_risk) == (0, (), (), 0)
    assert report.passed
    assert report.accepted == 12


def test_killed_hosts_are_gone_and_the_others_make_new_copies() -> None:
    case = rehearsal(fleet_of("a", "b", "c", "d"), Request("kill", "d:30"))
    world = build_case(case)
    world.run()
    assert [name for name in world.nodes if not world.nodes[name].up] == ["d"]
    assert world.oracle.gone == {"d": 30_000}
    assert world.oracle.violations == []
    assert run_case(case).lost == 0  # all was durable by then


def test_what_dies_with_its_holders_is_lost_and_the_report_says_why() -> None:
    case = rehearsal(fleet_of("a", "b", "c", "d", min_copies=1), Request("kill", "[ab]:90"))
    report = run_case(case)
    assert report.lost == len(report.losses) > 0
    assert not report.passed
    for loss in report.losses:
        assert (loss.receipts, loss.needed) == (1, 1)
        assert loss.why == "it was durable, and all 2 holders are gone: a, b"
        assert loss.accepted_seconds < 90


def test_what_was_on_its_way_when_its_maker_died_is_lost_and_the_report_says_so() -> None:
    slow = fleet_of("a", "b", "c", "d")
    hosts = {name: replace(host, bandwidth_limit=Bandwidth.megabytes(1)) for name, host in slow.hosts.items()}
    report = run_case(rehearsal(replace(slow, hosts=hosts), Request("kill", "a:25")))
    undelivered = [loss for loss in report.losses if loss.receipts < loss.needed]
    assert undelivered
    assert all(loss.why.startswith("a was gone ") for loss in undelivered)


def test_the_setting_that_would_have_saved_it_is_found_by_trying() -> None:
    case = rehearsal(fleet_of("a", "b", "c", "d", min_copies=1), Request("kill", "[ab]:90"))
    found = remedies(case, run_case(case))
    assert found[0].lost == 0
    assert "min_copies: 2" in {remedy.setting for remedy in found if remedy.lost == 0}
    assert remedies(case, replace(run_case(case), lost=0)) == ()


def test_a_full_host_refuses_its_own_and_the_others_find_room_elsewhere() -> None:
    report = run_case(rehearsal(fleet_of("a", "b", "c", "d"), Request("fill", "b")))
    assert report.refused > 0
    assert (report.lost, report.violations, report.at_risk) == (0, (), 0)


def test_a_partition_of_two_hosts_is_healed_and_everybody_agrees() -> None:
    case = rehearsal(fleet_of("a", "b", "c", "d"), Request("partition", "a|b:5-25"))
    report = run_case(case)
    assert dict(report.bites)["partition_cut"] > 0
    assert (report.coverage, report.lost, report.violations) == (1.0, 0, ())


def test_a_shared_root_outlives_its_machines() -> None:
    fleet = fleet_of("a", "b", "c", "d")
    shared = {name: replace(fleet.hosts[name], nfs_group="a", domain="domain-1") for name in ("a", "b")}
    world = build_case(rehearsal(replace(fleet, hosts={**fleet.hosts, **shared}), Request("kill", "a:30")))
    world.run()
    assert world.nodes["a"].gone
    assert not world.nodes["b"].store.gone


def test_the_same_artifacts_are_asked_of_the_same_fleet_with_another_setting() -> None:
    names = []
    for copies in (1, 2):
        world = build_case(rehearsal(fleet_of("a", "b", "c", min_copies=copies)))
        world.run()
        names.append(sorted((record.name, record.size) for record in world.oracle.records.values()))
    assert names[0] == names[1]


# --- the command that does it again ---


def test_a_report_names_every_choice_that_made_the_run() -> None:
    case = Case(
        "rehearsal", 7, fleet=fleet_of("a", "b", "c"), hosts="my fleet.yaml", requests=(Request("kill", "a*:5"),)
    )
    case = replace(case, seconds=9, operations=2, faults=("loss", "fill"))
    assert case.command == (
        "spore simulate rehearsal --hosts 'my fleet.yaml' --kill 'a*:5' --faults loss,fill --operations 2 --seconds 9 "
        "--seed 7"
    )
    assert Case("crash", nodes=4, faults=()).command == "spore simulate crash --nodes 4 --faults none --seed 1"


def test_fewer_faults_operations_and_seconds_are_what_was_asked_for() -> None:
    options = build_case(Case("swarm", seed=2, faults=("fuse", "loss"), operations=3, seconds=11)).options
    assert {kind for kind, _ in options.weights} <= {"fuse"}
    assert (options.operations, options.busy_ms, options.stream_breaks, options.disk_trouble) == (3, 11_000, 0, 0)
    with pytest.raises(ValueError, match="there is no fault 'rain'; use none, or some of fuse"):
        run_case(Case("swarm", faults=("rain",)))


def test_a_scenario_of_faults_can_be_run_without_any() -> None:
    report = run_case(Case("crash", faults=(), operations=5, seconds=5))
    assert (report.violations, report.coverage) == ((), 1.0)
    assert not {"killed", "power_lost", "crash_in_commit"} & set(dict(report.bites))


# --- shrinking ---


@cache
def good() -> Report:
    return run("convergence", 3)


def failing(case: Case) -> Report:
    """Stands for a bug: every run with a kill in it and more than four nodes breaks a rule."""
    options = build_case(case).options
    broken = options.nodes > 4 and any(kind == "kill" for kind, _ in options.weights)
    lines = (f"at {case.seed} ms: node-{options.nodes:02d} broke a rule",) if broken else ()
    return replace(good(), violations=lines, reproduce=case.command)


def test_a_failing_case_is_shrunk_to_what_it_takes() -> None:
    case = Case("crash", seed=3, nodes=12)
    small, report = shrink(case, failing(case), failing)
    assert small.nodes == 5
    assert small.faults == ("kill",)
    assert small.seconds is not None
    assert small.seconds <= 6
    assert report.reproduce == small.command
    assert report.violations


def test_a_smaller_case_that_breaks_another_rule_is_not_taken() -> None:
    def other(case: Case) -> Report:
        return replace(failing(case), violations=("at 1 ms: something else happened",))

    case = Case("crash", seed=3, nodes=12)
    found = failing(case)
    assert shrink(case, found, other) == (case, found)


def test_rules_are_sentences_without_times_names_and_numbers() -> None:
    report = replace(good(), violations=("at 10 ms: node-01 told 3 lies",))
    assert rules(report) == rules(replace(report, violations=("at 99 ms: node-02 told 4 lies",)))


# --- the command line ---


def test_people_read_what_was_lost_and_what_would_have_saved_it() -> None:
    result = simulate("--hosts", str(HOSTS), "--kill", "[hv]*:20", "--kill", "nebius*:21", "--operations", "3")
    assert result.exit_code == 1
    assert "lost artifact" in result.stdout
    assert "the same run with" in result.stdout
    assert "min_copies: 3" in result.stdout
    assert "would have been lost" in result.stdout.splitlines()[-1]
    assert f"--hosts {HOSTS} --kill '[hv]*:20' --kill 'nebius*:21' --operations 3 --seed 1" in result.stdout


def test_programs_read_the_same_as_json() -> None:
    result = simulate(
        "--hosts", str(HOSTS), "--kill", "[hv]*:20", "--kill", "nebius*:21", "--operations", "3", "--json"
    )
    facts = json.loads(result.stdout)
    assert list(facts) == list(rehearsing.FIELDS)
    assert (facts["passed"], facts["lost"]) == (False, len(facts["losses"]))
    assert list(facts["losses"][0]) == [
        *("name", "size", "origin", "accepted_seconds", "receipts", "needed", "why"),
    ]
    assert all(set(remedy) == {"setting", "lost"} for remedy in facts["remedies"])
    assert facts["shrunk"] is None


def test_a_rehearsal_that_passes_is_exit_0() -> None:
    result = simulate("--hosts", str(HOSTS), "--fill", "vultr-sp-1")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("PASSED: of ")


def test_a_broken_rule_is_reported_with_the_smallest_run_that_breaks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.run_case", failing)
    result = simulate("crash", "--nodes", "12", "--seed", "3")
    assert result.exit_code == 1
    assert "violation: at 3 ms: node-12 broke a rule" in result.stdout
    assert "smallest run found that breaks the same rule: spore simulate crash --nodes 5" in result.stdout
    assert result.stdout.splitlines()[-1] == "FAILED: 1 broken rule"


def test_the_example_fleet_survives_its_ephemeral_hosts() -> None:
    report = run_case(
        Case("rehearsal", fleet=load_fleet(HOSTS), requests=(Request("kill", "vast-*:40"), Request("kill", "run*:40")))
    )
    assert report.violations == ()
    assert all(loss.receipts < loss.needed for loss in report.losses)  # what was durable is safe
