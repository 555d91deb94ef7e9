"""Which setting would have saved what a rehearsal lost: tried, not guessed.

Each candidate changes one setting of the hosts file and lets the same seed run again: the same artifacts, the same
kills. What it still loses is what that setting cannot save.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from protocol.fleet import Bandwidth, Fleet
from simulations.report import Report
from simulations.scenarios import Case, run_case

MORE_COPIES = 3  # beyond today's min_copies: further ones cost more disk than they are worth
FASTER = 4  # times today's egress: what a better uplink could do


@dataclass(frozen=True, slots=True)
class Remedy:
    """One setting, and how many artifacts the same run loses with it."""

    setting: str
    lost: int


def remedies(case: Case, report: Report) -> tuple[Remedy, ...]:
    """Settings with which fewer would have been lost, the best first; empty when none of those tried helps."""
    if case.fleet is None or not report.lost:
        return ()
    found = [Remedy(setting, run_case(replace(case, fleet=fleet)).lost) for setting, fleet in _candidates(case, report)]
    helpful = [remedy for remedy in found if remedy.lost < report.lost]
    return tuple(sorted(helpful, key=lambda remedy: remedy.lost))


def _candidates(case: Case, report: Report) -> Iterator[tuple[str, Fleet]]:
    fleet = case.fleet
    assert fleet is not None
    killed = {name for request in case.requests for action in request.actions(fleet) for name in action.here}
    yield from _more_copies(fleet)
    yield from _known_as_ephemeral(fleet, killed)
    yield from _faster(fleet, sorted({loss.origin for loss in report.losses if loss.receipts < loss.needed}))
    yield from _no_longer_excluded(fleet, killed)


def _more_copies(fleet: Fleet) -> Iterator[tuple[str, Fleet]]:
    now = fleet.routing.min_copies
    for copies in range(now + 1, now + MORE_COPIES + 1):
        kinds = tuple(replace(k, min_copies=max(k.min_copies, copies) if k.min_copies else None) for k in fleet.kinds)
        yield f"min_copies: {copies}", replace(fleet, routing=replace(fleet.routing, min_copies=copies), kinds=kinds)


def _known_as_ephemeral(fleet: Fleet, killed: set[str]) -> Iterator[tuple[str, Fleet]]:
    """Ephemeral stores do not count while enough persistent ones are there."""
    names = [name for name in sorted(killed) if name in fleet.hosts and not fleet.hosts[name].ephemeral]
    groups = {fleet.hosts[name].nfs_group for name in names} - {None}
    if names and not groups:
        hosts = {n: replace(host, ephemeral=True) if n in names else host for n, host in fleet.hosts.items()}
        yield f"ephemeral_hosts: [{', '.join(names)}]", replace(fleet, hosts=hosts)


def _faster(fleet: Fleet, origins: list[str]) -> Iterator[tuple[str, Fleet]]:
    """What was on its way when its origin died might have arrived."""
    hosts = dict(fleet.hosts)
    shown = []
    for name in origins:
        rate = fleet.egress_bytes_per_second(name)
        if rate is not None and name in hosts:
            hosts[name] = replace(hosts[name], bandwidth_limit=Bandwidth(rate * FASTER))
            shown.append(f"{name}: {{bandwidth_limit_mbps: {rate * FASTER // 1_000_000}}}")
    if shown:
        yield ", ".join(shown), replace(fleet, hosts=hosts)


def _no_longer_excluded(fleet: Fleet, killed: set[str]) -> Iterator[tuple[str, Fleet]]:
    for name in sorted(fleet.hosts):
        if fleet.hosts[name].excluded and name not in killed:
            hosts = {**fleet.hosts, name: replace(fleet.hosts[name], excluded=False)}
            yield f"exclude_from_sync without {name}", replace(fleet, hosts=hosts)
