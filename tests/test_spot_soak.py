"""Long forms of spot life: many last flushes with every budget, and two hundred nodes that are killed and stay away."""

import signal
from random import Random
from statistics import quantiles

import pytest

from tests.agents import GENEROUS_SECONDS, running, started
from tests.last_flushes import GOING, HOSTS, UPLINK_MBPS, contents, cpu_is_shared, end, put_all
from tests.vanishing import lived

KINDS = {"kinds": {"npz": {"paths": ["training/*.npz"], "versions": 1}}}
SPARE_SECONDS = 0.5


@pytest.mark.soak
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize(("budget_seconds", "runs"), [(4, 50), (25, 10), (110, 3)])
def test_last_flushes_lose_nothing_that_fits_and_name_exactly_the_rest(budget_seconds: int, runs: int) -> None:
    with running(HOSTS, KINDS, flush_seconds=budget_seconds) as fleet:
        for seed in range(runs):
            share = (0.0, 0.4, 0.8, 1.6)[seed % 4] if runs > 3 else (0.4, 0.8, 1.6)[seed]
            artifacts = contents(1_000 * budget_seconds + seed, int(share * budget_seconds * UPLINK_MBPS * 1e6))
            put_all(fleet, GOING, artifacts)
            result = end(fleet, artifacts, signal.SIGTERM, budget_seconds)
            print(
                f"budget {budget_seconds} s, {share:.0%}: {result.debt_bytes / 1e6:.1f} MB at risk, "
                f"{len(result.lost)} of {len(artifacts)} lost, gone after {result.seconds:.2f} s"
            )
            assert result.seconds <= budget_seconds + SPARE_SECONDS
            assert result.told_truly
            assert share > 0.8 or result.lost == []
            started(fleet, GOING)
            fleet.until(lambda: not fleet.ask(GOING, "risk"), "nothing is at risk", 4 * GENEROUS_SECONDS)


def killed(runs: int) -> None:
    random = Random(6)
    hosts = {name: {"provider": name} for name in ("keep-1", "keep-2", "keep-3")}
    delays: list[float] = []
    accepted = lost = receipted = 0
    with running(hosts, KINDS) as fleet:
        for number in range(runs):
            life = lived(fleet, f"spot-{number}", random, random.uniform(1.0, 4.0))
            delays += life.delays
            accepted += sum(1 for put in life.puts if put.accepted_at)
            receipted += sum(put.two_copies for put in life.puts)
            lost += len(life.lost)
            assert not any(put.two_copies for put in life.lost), "an artifact with two receipts is lost"
            assert not any(put.first_copy_at for put in life.lost), "an artifact with a receipt is lost"
            for put in life.lost:
                assert life.killed_at - put.accepted_at <= max(delays, default=0.0) + 1.0
    percentiles = quantiles(delays, n=100)
    print(
        f"{runs} kills: {accepted} artifacts of 1 MiB accepted, {receipted} with two receipts, {lost} others lost; "
        f"push delay p50 {percentiles[49]:.3f} s, p99 {percentiles[98]:.3f} s, worst {max(delays):.3f} s"
    )
    if not cpu_is_shared():
        assert percentiles[49] <= 0.2
        assert percentiles[98] <= 1.5


def test_what_a_killed_node_had_two_receipts_for_is_there() -> None:
    killed(2)


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_two_hundred_nodes_are_killed_and_stay_away() -> None:
    killed(200)
