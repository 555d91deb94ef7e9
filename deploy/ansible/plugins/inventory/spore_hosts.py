"""The Ansible inventory: read from `distributed_hosts.yaml` itself, so that there is one list of
hosts.

Needs the packages of this project beside Ansible: `pip install '.[deploy]'`. A file with mistakes is refused with all
of them, as by `spore check`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin

from node.config import ConfigError, load_fleet
from protocol.fleet import PORT_DEFAULT, Fleet, Host, split_address

DOCUMENTATION = r"""
name: spore_hosts
short_description: Hosts, groups and variables from distributed_hosts.yaml
description:
  - Groups are C(spore) (every host that SSH can reach, in the order in which they may be stopped), C(first_issuer),
    C(issuers), C(persistent), C(ephemeral), C(excluded), C(role_ROLE), C(provider_PROVIDER) and C(nfs_FIRST), named by
    the first host of an NFS group; and C(batch_NUMBER), the hosts that may stop together.
  - Hosts without an address and without C(ssh.host) are in C(unreachable) alone; they join by token.
options: {}
"""

BATCH_SHARE = 0.1  # of the fleet may stop at once: nine tenths go on working, and a thousand hosts take ten batches


class InventoryModule(BaseInventoryPlugin):
    """Reads one hosts file."""

    NAME = "spore_hosts"

    def verify_file(self, path: str) -> bool:
        return super().verify_file(path) and path.endswith(("hosts.yaml", "hosts.yml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        try:
            fleet = load_fleet(path)
        except (ConfigError, OSError) as problem:
            raise AnsibleParserError(str(problem)) from problem
        shared = fleet_variables(fleet, Path(path).resolve())
        for group in ("spore", "issuers", "first_issuer", "persistent", "ephemeral", "excluded", "unreachable"):
            inventory.add_group(group)
        in_order = [name for batch in shared["spore_batches"] for name in batch]
        for name in dict.fromkeys([*in_order, *sorted(fleet.hosts)]):
            inventory.add_host(name)
            for group in groups(fleet.hosts[name]):
                inventory.add_child(inventory.add_group(group), name)
            for key, value in host_variables(fleet, fleet.hosts[name]).items():
                inventory.set_variable(name, key, value)
        if shared["spore_issuer"]:
            inventory.add_child("first_issuer", shared["spore_issuer"])
        for number, batch in enumerate(shared["spore_batches"], 1):  # only groups are known where a play says `serial`
            for name in batch:
                inventory.add_child(inventory.add_group(f"batch_{number:04}"), name)
        for key, value in shared.items():
            inventory.set_variable("all", key, value)


def groups(host: Host) -> list[str]:
    """The groups of one host."""
    if not ssh_address(host):
        return ["unreachable"]
    named = ["spore", f"role_{host.role}", "ephemeral" if host.ephemeral else "persistent"]
    named += [f"provider_{host.provider}"] if host.provider else []
    named += [f"nfs_{host.nfs_group}"] if host.nfs_group else []
    named += ["issuers"] if host.issuer else []
    named += ["excluded"] if host.excluded else []
    return ["".join(c if c.isalnum() else "_" for c in name) for name in named]


def ssh_address(host: Host) -> str:
    """Where SSH reaches a host; empty when it cannot be reached."""
    stated = host.ssh.host if host.ssh else None
    dialled = split_address(host.dial_address)[0] if host.dial_address else ""
    return stated or dialled


def host_variables(fleet: Fleet, host: Host) -> dict[str, Any]:
    """How Ansible reaches a host, and what the role needs of its entry."""
    routing = fleet.routing_for(host.name)
    _, port = split_address(host.listen_address)
    found = {
        "spore_address": host.dial_address or "",
        "spore_listen_port": port or PORT_DEFAULT,
        "spore_root": host.root or "",
        "spore_domain": fleet.domain(host.name),
        "spore_mates": [name for name in fleet.nfs_members(host.name) if name != host.name],
        "spore_ephemeral": host.ephemeral,
        "spore_flush_seconds": routing.flush_seconds,
        "spore_disk_cap_percent": routing.disk_cap_percent,
        "spore_min_free_bytes": routing.min_free_bytes,
        "spore_metrics_port": routing.metrics_port or 0,
    }
    return found | connection(host)


def connection(host: Host) -> dict[str, Any]:
    """The connection variables of a host. A pinned key is the only one accepted; else the first one seen is kept."""
    ssh, address = host.ssh, ssh_address(host)
    found: dict[str, Any] = {"ansible_host": address} if address else {}
    options = ["StrictHostKeyChecking=accept-new"]
    if ssh is not None:
        found["ansible_port"] = ssh.port
        found |= {"ansible_user": ssh.user} if ssh.user else {}
        found |= {"ansible_ssh_private_key_file": str(Path(ssh.key).expanduser())} if ssh.key else {}
        if ssh.host_key:
            options = ["StrictHostKeyChecking=yes", "UserKnownHostsFile=/dev/null", "GlobalKnownHostsFile=/dev/null"]
            options.append(f"KnownHostsCommand=/bin/echo %H {ssh.host_key}")
    return found | {"ansible_ssh_common_args": shlex.join([word for option in options for word in ("-o", option)])}


def fleet_variables(fleet: Fleet, path: Path) -> dict[str, Any]:
    """What holds for all hosts; `spore_batches` are those that may stop at one time."""
    reachable = {name: host for name, host in sorted(fleet.hosts.items()) if ssh_address(host)}
    issuers = [name for name, host in reachable.items() if host.issuer]
    stops = batches({name: fleet.domain(name) for name in reachable}, last=issuers)
    return {
        "spore_cluster": fleet.cluster,
        "spore_hosts_file": str(path),
        "spore_min_copies": fleet.routing.min_copies,
        "spore_issuer": issuers[0] if issuers else "",
        "spore_batches": stops,
    }


def batches(domains: Mapping[str, str], last: Sequence[str] = ()) -> list[list[str]]:
    """Hosts in the order in which they may be stopped, those of one list at one time.

    Copies are spread over failure domains, so only hosts of one domain may stop together, and only where there are
    others; at most a tenth of the fleet at once. The first batch is one host, so that a bad release stops one; issuers
    come last, so that nobody lacks one while certificates are asked for.
    """
    at_most = max(1, int(len(domains) * BATCH_SHARE)) if len(set(domains.values())) > 1 else 1
    ordered = sorted(domains, key=lambda name: (name in last, domains[name], name))
    made: list[list[str]] = []
    for name in ordered:
        together = made and name not in last and len(made) > 1 and len(made[-1]) < at_most
        if together and domains[made[-1][0]] == domains[name]:
            made[-1].append(name)
        else:
            made.append([name])
    return made
