"""Real agents that must go: within their budget, nothing lost that could be saved, and the truth about the rest."""

import json
import signal
import time
from collections.abc import Iterator

import pytest

from node.local_fleet import LocalFleet
from tests.agents import GENEROUS_SECONDS, durable, lines, logged, plain, running, started, stopped, written
from tests.last_flushes import GOING, HOSTS, UPLINK_MBPS, Farewell, contents, end, put_all
from tests.metadata_servers import AwsService, serving

BUDGET_SECONDS = 6
SPARE_SECONDS = 0.5  # of a machine that has much else to do, until the end of the process is seen


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    kinds = {"kinds": {"npz": {"paths": ["training/*.npz"], "versions": 1}}}
    with running(HOSTS, kinds, flush_seconds=BUDGET_SECONDS) as made:
        yield made


def left_with(fleet: LocalFleet, seed: int, share: float) -> Farewell:
    """Put this share of budget times uplink, then SIGTERM; the node is started again afterwards."""
    artifacts = contents(seed, int(share * BUDGET_SECONDS * UPLINK_MBPS * 1e6))
    put_all(fleet, GOING, artifacts)
    result = end(fleet, artifacts, signal.SIGTERM, BUDGET_SECONDS)
    assert result.seconds <= BUDGET_SECONDS + SPARE_SECONDS
    assert result.told_truly, "the report names exactly what is lost"
    assert result.code == (1 if any("unsafe:" in line for line in result.log) else 0)
    return result


def back(fleet: LocalFleet) -> None:
    """It is started again, and all that it still owed from before is safe."""
    started(fleet, GOING)
    fleet.until(lambda: not fleet.ask(GOING, "risk"), "nothing is at risk", GENEROUS_SECONDS)


def test_with_nothing_at_risk_a_node_goes_at_once(fleet: LocalFleet) -> None:
    result = end(fleet, {}, signal.SIGTERM, BUDGET_SECONDS)
    assert result.code == 0
    assert result.seconds < BUDGET_SECONDS / 2
    back(fleet)


def test_what_fits_into_the_budget_is_saved(fleet: LocalFleet) -> None:
    result = left_with(fleet, 1, 0.75)
    assert result.debts
    assert result.lost == []
    back(fleet)


def test_beyond_the_budget_the_log_names_exactly_what_is_lost_and_so_do_the_peers(fleet: LocalFleet) -> None:
    result = left_with(fleet, 2, 1.8)
    assert result.code == 1
    assert result.lost
    said = logged(fleet, "b", "farewell", f"{GOING} leaves", f"{len(result.named)} of them")
    assert "are nowhere else" in said
    back(fleet)


def test_a_stalled_neighbour_costs_neither_the_budget_nor_what_it_was_offered(fleet: LocalFleet) -> None:
    with stopped(fleet, "c"):
        result = left_with(fleet, 3, 0.5)
    assert result.lost == []
    back(fleet)


def test_a_dead_neighbour_costs_nothing(fleet: LocalFleet) -> None:
    fleet.kill("d")
    result = left_with(fleet, 4, 0.5)
    assert result.lost == []
    started(fleet, "d")
    back(fleet)


def test_a_second_signal_means_now_and_nothing_accepted_is_lost(fleet: LocalFleet) -> None:
    artifacts = contents(5, int(BUDGET_SECONDS * UPLINK_MBPS * 1e6))
    put_all(fleet, GOING, artifacts)
    process = fleet.nodes[GOING].process
    assert process is not None
    before = sum("leaving:" in line for line in lines(fleet, GOING))
    process.send_signal(signal.SIGTERM)
    fleet.until(lambda: sum("leaving:" in line for line in lines(fleet, GOING)) > before, "it leaves", GENEROUS_SECONDS)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(BUDGET_SECONDS) == 1
    assert time.monotonic() - began < 2
    back(fleet)
    name, content = next(iter(artifacts.items()))
    durable(fleet, GOING, f"npz/{name}", plain(content))


def test_a_job_that_will_end_is_told_by_a_signal_and_goes_by_itself(fleet: LocalFleet) -> None:
    """Slurm's --signal; the variable of the fleet says that so many seconds are left."""
    fleet.env = {"SPORE_NOTICE_SECONDS": "8"}  # type: ignore[misc]
    fleet.terminate(GOING)
    back(fleet)
    process = fleet.nodes[GOING].process
    assert process is not None
    process.send_signal(signal.SIGUSR1)
    logged(fleet, GOING, "notice", "SIGUSR1")
    content = b"written after the notice" * 100
    written(fleet, GOING, "checkpoints/last", content)
    assert process.wait(30) == 0
    durable(fleet, "b", "checkpoint/checkpoints/last", plain(content))
    fleet.env = {}  # type: ignore[misc]
    back(fleet)


def test_an_instance_of_aws_saves_what_it_has_before_it_is_taken(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The metadata service says when; the node says that it is a spot one, and why, and goes before that moment."""
    service = AwsService()
    hosts = {"b": {"provider": "two"}, "c": {"provider": "three"}, "a": {"provider": "aws"}}
    with serving(service) as url, running(hosts, only=()) as fleet:
        fleet.terminate("a")
        fleet.env = {"SPORE_METADATA_URL": url}  # type: ignore[misc]
        started(fleet, "a")
        fleet.until(lambda: fleet.ask("a", "status")["ephemeral"], "it knows that it can vanish", GENEROUS_SECONDS)
        assert fleet.ask("a", "status")["ephemeral_by"] == "AWS calls it a spot instance"
        assert fleet.ask("a", "status")["notices"]["watched"] == ["aws"]
        seen = [row["ephemeral"] for row in fleet.ask("b", "peers") if row["node"] == "a"]
        fleet.until(
            lambda: [row["ephemeral"] for row in fleet.ask("b", "peers") if row["node"] == "a"] == [True],
            f"b sees that a can vanish, {seen}",
            GENEROUS_SECONDS,
        )
        content = b"accepted before the notice" * 1_000
        written(fleet, "a", "checkpoints/one", content)
        at = time.time() + 20
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
        service.put("/latest/meta-data/spot/instance-action", json.dumps({"action": "terminate", "time": stamp}))
        logged(fleet, "a", "notice", "AWS will terminate")
        process = fleet.nodes["a"].process
        assert process is not None
        assert process.wait(40) == 0
        assert time.time() < at
        durable(fleet, "b", "checkpoint/checkpoints/one", plain(content))
        assert service.count("/latest/api/token") >= 1
