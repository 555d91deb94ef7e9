"""This node's own entry, as it holds on this machine: the hosts file, then what the machine and its environment say.

The fleet's hash stays that of the file: other nodes go by what this one says of itself in its row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from node.config import apply_environment, apply_host_environment
from node.notices.detection import Machine
from protocol.fleet import BANDWIDTH_VARIABLE, Bandwidth, Fleet, Host

STATED = "its entry in the hosts file"  # as `node.config_checks` writes it: what is stated is not detected otherwise


def on_this_machine(fleet: Fleet, node: str, env: Mapping[str, str], machine: Machine) -> Fleet:
    """The fleet with this node's entry changed for this process. Raises ConfigError for bad variables."""
    host = _detected(fleet, fleet.host(node), machine)
    host = apply_host_environment(host, env)
    host = _limited(fleet, host, env)
    overrides = _overrides(fleet, host, env, machine)
    if overrides:
        host = replace(host, overrides={**host.overrides, **overrides})
    return fleet if host == fleet.host(node) else replace_host(fleet, host)


def _detected(fleet: Fleet, host: Host, machine: Machine) -> Host:
    """Never against what is stated; and a node that keeps the cluster's key, or shares its root, is what it is."""
    if host.provider is None and machine.provider:
        host = replace(host, provider=machine.provider)
    bound = host.issuer or host.nfs_group is not None or host.ephemeral_by == STATED
    if machine.ephemeral and not host.ephemeral and not bound:
        host = replace(host, ephemeral=True, ephemeral_by=machine.ephemeral)
    return host


def _limited(fleet: Fleet, host: Host, env: Mapping[str, str]) -> Host:
    """The core plans with the limit that the environment states."""
    if not env.get(BANDWIDTH_VARIABLE, "").strip():
        return host
    return replace(host, bandwidth_limit=Bandwidth(fleet.egress_bytes_per_second(host.name, env)))


def _overrides(fleet: Fleet, host: Host, env: Mapping[str, str], machine: Machine) -> dict[str, object]:
    """Settings of routing: what the environment states, and the budget of the last flush where nobody states one."""
    routing = replace_host(fleet, host).routing_for(host.name)
    if routing.flush_seconds is None and machine.flush_seconds is not None:
        routing = replace(routing, flush_seconds=machine.flush_seconds)
    applied = apply_environment(routing, env)
    before = replace_host(fleet, host).routing_for(host.name)
    names = [name for name in applied.__dataclass_fields__ if name != "bandwidth_limit"]
    return {name: getattr(applied, name) for name in names if getattr(applied, name) != getattr(before, name)}


def replace_host(fleet: Fleet, host: Host) -> Fleet:
    """The fleet with one host's entry changed for this process; the hash stays that of the file."""
    if not host.listed:
        return fleet.with_joined(host)
    changed = replace(fleet, hosts={**fleet.hosts, host.name: host})
    object.__setattr__(changed, "hash", fleet.hash)
    return changed
