"""Fleets that a seed invents: a few domains, roles, and every kind of host that there is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from protocol.fleet import MIB, PRIORITIES, Bandwidth, Fleet, Host, Routing

ROUTING = Routing(
    auto_sync_interval_seconds=10.0,  # shorter than in a real fleet, so that a run is short
    gossip_interval_seconds=5.0,
    min_free_bytes=64 * MIB,
)
PROVIDERS = (("nebius", "eu-north1"), ("lambda", "us-east-3"), ("hetzner", "fsn1"), ("vultr", "ewr"))


@dataclass(frozen=True, slots=True)
class Shape:
    """What an invented fleet has more of than the usual one."""

    ephemeral_share: float = 0.0
    nfs_size: int = 0  # members of each group; about half of the fleet is in one
    domains: int = 2
    priorities: bool = False  # hosts of all four, and narrow budgets towards some
    uplinks: tuple[int, ...] = ()  # megabytes per second, one drawn for each host; none: as the provider has it


USUAL = Shape()


def invent_fleet(random: Random, count: int, shape: Shape = USUAL) -> Fleet:
    """Two domains; an excluded node, an ephemeral one, an NFS pair and one that cannot be dialled, as far as fit."""
    hosts: dict[str, Host] = {}
    for index in range(count):
        provider, region = PROVIDERS[index % shape.domains]
        role = random.choice(("training", "selfplay", "worker"))
        name = f"node-{index:02d}"
        address = f"10.0.{index // 250}.{index % 250 + 1}:7946"
        limit = Bandwidth.megabytes(random.choice(shape.uplinks)) if shape.uplinks else None
        hosts[name] = Host(name, address, provider, region, role=role, bandwidth_limit=limit)
    names = sorted(hosts)
    if count >= 5:
        hosts[names[-1]] = replace(hosts[names[-1]], excluded=True)
        hosts[names[-2]] = replace(hosts[names[-2]], ephemeral=True)
    if count >= 6:
        for name in (names[0], names[2]):
            hosts[name] = replace(hosts[name], nfs_group=names[0])
    if count >= 8:
        hosts[names[3]] = replace(hosts[names[3]], address=None)
    _more_ephemeral(hosts, names, shape)
    _more_shared(hosts, names, shape)
    _more_priorities(hosts, names, shape)
    return Fleet("simulated", _routing(shape), hosts=hosts)


def _routing(shape: Shape) -> Routing:
    if not shape.priorities:
        return replace(ROUTING)
    narrow = (("vultr", Bandwidth.megabytes(4)),)
    return replace(ROUTING, provider_limits=narrow, peer_limits=(("*-01", Bandwidth.megabytes(2)),))


def _more_priorities(hosts: dict[str, Host], names: list[str], shape: Shape) -> None:
    for index, name in enumerate(names if shape.priorities else ()):
        hosts[name] = replace(hosts[name], sync_priority=PRIORITIES[index % len(PRIORITIES)])


def _more_ephemeral(hosts: dict[str, Host], names: list[str], shape: Shape) -> None:
    """From the end of the list on, the excluded one left out."""
    wanted = int(len(names) * shape.ephemeral_share)
    for name in [name for name in reversed(names) if not hosts[name].excluded][:wanted]:
        hosts[name] = replace(hosts[name], ephemeral=True)


def _more_shared(hosts: dict[str, Host], names: list[str], shape: Shape) -> None:
    """Groups within one domain, from the beginning of the list on: whole ones, of the first half of the fleet."""
    if not shape.nfs_size:
        return
    for name in names:
        hosts[name] = replace(hosts[name], nfs_group=None)
    free = [name for name in names if not hosts[name].excluded and not hosts[name].ephemeral]
    grouped = 0
    for domain in sorted({hosts[name].own_domain for name in free}):
        mates = [name for name in free if hosts[name].own_domain == domain][: shape.nfs_size]
        if len(mates) == shape.nfs_size and grouped + len(mates) <= max(len(names) // 2, shape.nfs_size):
            grouped += len(mates)
            for name in mates:
                hosts[name] = replace(hosts[name], nfs_group=mates[0])
