"""From the tree of a hosts file to a `Fleet`, and every contradiction between settings that are each fine alone.

Builders read section after section, so that one mistake hides no other; checks come last and see what could be read.
"""

from dataclasses import replace
from typing import Any

from node.config_problems import BadValueError, Findings, Path, did_you_mean
from node.config_schema import (
    ExternalSettings,
    FileSettings,
    HostSettings,
    KindSettings,
    Section,
    SharedSettings,
    SyncRoutingSettings,
    read_section,
    stated,
)
from node.config_values import read_kind_name, read_node
from protocol.fleet import (
    DEFAULT_KINDS,
    RESERVED_KIND,
    ExternalStorage,
    Fleet,
    Host,
    Kind,
    Routing,
    Ssh,
    matches_any,
    split_address,
)

KINDS_MAX = 64  # every new file is tried against every kind's globs


def build_fleet(tree: dict[str, object], findings: Findings) -> Fleet:
    """The fleet that a file describes, as far as it can be read; it may be used only if no error was noted."""
    top = read_section(FileSettings, tree, (), findings)
    if "cluster" not in tree:
        findings.error((), "cluster is missing", "Add a line such as cluster: my-fleet.")
    routing = read_section(SyncRoutingSettings, top.sync_routing, ("sync_routing",), findings)
    hosts = _read_hosts(top.hosts, routing, findings)
    hosts_are_whole = not any(problem.path.startswith("hosts") for problem in findings.errors)
    fleet = Fleet(
        cluster=top.cluster or "unnamed",
        routing=replace(Routing(), **routing_stated(routing, ("sync_routing",), findings)),
        kinds=_read_kinds(top.kinds, findings),
        hosts=hosts,
        exclude_from_sync=tuple(sorted(routing.exclude_from_sync or ())),
        ephemeral_hosts=tuple(sorted(routing.ephemeral_hosts or ())),
        nfs_sharing_groups=tuple(sorted(tuple(sorted(set(group))) for group in routing.nfs_sharing_groups or ())),
    )
    _check(fleet, routing, top.hosts, findings, hosts_are_whole)
    return fleet


def routing_stated(settings: SharedSettings, path: Path, findings: Findings) -> dict[str, Any]:
    """The fields of `Routing` that a section states, with what follows from them."""
    if {"bandwidth_limit", "bandwidth_limit_mbps"} <= settings.model_fields_set:
        here = (*path, "bandwidth_limit_mbps")
        findings.error(here, "bandwidth_limit is stated too", "Keep one of the two.")
    found = stated(settings, Routing)
    if "allowed_external_storage" in found:
        places = found["allowed_external_storage"]
        found["allowed_external_storage"] = tuple(map(_external, places))
    for key in ("provider_limits", "peer_limits"):
        if key in found:
            found[key] = tuple(found[key].items())  # in the file's order: of patterns the first that matches counts
    return found | _disk_bounds(found, path, findings)


def _external(place: ExternalSettings) -> ExternalStorage:
    ssh = Ssh(**stated(place.ssh, Ssh)) if place.ssh is not None else None
    return ExternalStorage(place.host, place.path, place.schedule, ssh)


def _disk_bounds(found: dict[str, Any], path: Path, findings: Findings) -> dict[str, float]:
    """The other disk bound, when one is stated alone: they are two sides of one threshold."""
    used: float | None = found.get("max_disk_usage_percent")
    free: float | None = found.get("min_free_disk_percent")
    if used is None:
        return {} if free is None else {"max_disk_usage_percent": 100 - free}
    if free is None:
        return {"min_free_disk_percent": 100 - used}
    if used + free > 100:
        wins = f"The stricter wins: {min(used, 100 - free):g} percent used at most."
        message = f"{used:g} percent used and {free:g} percent free contradict each other"
        findings.warning((*path, "min_free_disk_percent"), message, wins, free)
    return {}


def _entries(content: object, section: str, findings: Findings) -> dict[str, object]:
    """The named entries of `hosts` or `kinds`; none, and a note, when it is not a mapping."""
    if content is None:
        return {}
    if isinstance(content, dict):
        return content
    findings.error((section,), "named entries belong here", f"Write {section}:, then `name: {{…}}` lines.", content)
    return {}


def _read_hosts(content: object, routing: SyncRoutingSettings, findings: Findings) -> dict[str, Host]:
    """All hosts that have a usable name."""
    entries = _entries(content, "hosts", findings)
    if not content:
        findings.error(("hosts",) if content is not None else (), "hosts lists no host", "Add one below hosts:.")
    groups = {name: min(group) for group in routing.nfs_sharing_groups or () for name in group}
    hosts = {}
    for name, entry in entries.items():
        _read_name(read_node, name, "hosts", findings)
        settings = read_section(HostSettings, entry, ("hosts", name), findings)
        hosts[name] = _host(name, settings, routing, groups.get(name), findings)
    return hosts


def _read_name(read: Any, name: str, section: str, findings: Findings) -> None:
    try:
        read(name)
    except BadValueError as error:
        findings.error((section, name), error.message, error.suggestion, name)


def _host(
    name: str, settings: HostSettings, routing: SyncRoutingSettings, group: str | None, findings: Findings
) -> Host:
    """One host: its entry, and what the patterns of `sync_routing` say where the entry is silent."""
    own = stated(settings, Host)
    if isinstance(own.get("ssh"), Section):
        own["ssh"] = Ssh(**stated(own["ssh"], Ssh))
    overrides = routing_stated(settings, ("hosts", name), findings)
    overrides.pop("bandwidth_limit", None)  # stands in the host itself: it outranks the provider's, others do not
    pattern = next((p for p in routing.ephemeral_hosts or () if matches_any((p,), name)), "")
    by_pattern = f"ephemeral_hosts: {pattern}" if pattern else ""
    own["ephemeral_by"] = "its entry in the hosts file" if "ephemeral" in own else by_pattern
    resolved = {
        "ephemeral": matches_any(tuple(routing.ephemeral_hosts or ()), name),
        "excluded": matches_any(tuple(routing.exclude_from_sync or ()), name),
    }
    return Host(name, **(resolved | own), nfs_group=group, overrides=overrides)


def _read_kinds(content: object, findings: Findings) -> tuple[Kind, ...]:
    """The file's kinds in its order, then the default ones it does not name: the first that matches a file wins."""
    entries = _entries(content, "kinds", findings)
    if len(entries) > KINDS_MAX:
        findings.error(("kinds",), f"there are more than {KINDS_MAX} kinds", "Use folders below one kind instead.")
    own = tuple(_kind(name, entry, findings) for name, entry in entries.items())
    return own + tuple(kind for kind in DEFAULT_KINDS if kind.name not in entries)


def _kind(name: str, content: object, findings: Findings) -> Kind:
    path: Path = ("kinds", name)
    _read_name(read_kind_name, name, "kinds", findings)
    if name == RESERVED_KIND:
        findings.error(path, f"the kind {RESERVED_KIND} is reserved", "Choose another name.", name)
    settings = read_section(KindSettings, content, path, findings)
    if settings.scope == "peers":
        hint = "Remove the line: cluster is the only scope honoured."
        findings.error((*path, "scope"), "the scope peers is reserved and would not be kept", hint, "peers")
    if settings.strategy == "pull" and settings.roles:
        hint = "Remove roles, or use hybrid."
        findings.warning((*path, "roles"), "roles have no effect where the strategy is pull", hint)
    default = next((kind for kind in DEFAULT_KINDS if kind.name == name), Kind(name))
    return replace(default, **stated(settings, Kind))


def _check(
    fleet: Fleet, routing: SyncRoutingSettings, raw_hosts: object, findings: Findings, hosts_are_whole: bool
) -> None:
    """Every contradiction. What compares hosts with each other needs all of them readable, or it would mislead."""
    names = tuple(raw_hosts) if isinstance(raw_hosts, dict) else ()
    _check_patterns(names, routing, findings)
    _check_groups(fleet, names, routing, findings)
    _check_globs(fleet, findings)
    _check_receive(fleet, findings)
    for host in fleet.hosts.values():
        _check_host(host, routing, findings)
    if hosts_are_whole:
        _check_addresses(fleet, findings)
        _check_roles(fleet, findings)
        _check_stores(fleet, findings)


def _check_patterns(names: tuple[str, ...], routing: SyncRoutingSettings, findings: Findings) -> None:
    """Patterns that match nothing: only a warning, for hosts that join later may bear such names."""
    for key in ("exclude_from_sync", "ephemeral_hosts"):
        for index, pattern in enumerate(getattr(routing, key) or ()):
            if not any(matches_any((pattern,), name) for name in names):
                hint = did_you_mean(pattern, names, "It will apply to hosts that join under such a name.")
                findings.warning(("sync_routing", key, index), f"{pattern} matches no listed host", hint, pattern)


def _check_groups(fleet: Fleet, names: tuple[str, ...], routing: SyncRoutingSettings, findings: Findings) -> None:
    seen: dict[str, int] = {}
    for index, group in enumerate(routing.nfs_sharing_groups or ()):
        here: Path = ("sync_routing", "nfs_sharing_groups", index)
        if len(group) < 2:
            findings.error(here, "one host shares with nobody", "Name all hosts that mount the root, or remove it.")
        for position, name in enumerate(group):
            if name not in names:
                hint = did_you_mean(name, names, "List it below hosts:.")
                findings.error((*here, position), f"{name} is no listed host", hint, name)
            if name in seen:
                hint = "Name every host once; a root is one store."
                findings.error((*here, position), f"{name} stands in two groups or twice in one", hint, name)
            seen[name] = index
        _check_group_members([fleet.hosts[name] for name in group if name in fleet.hosts], here, findings)


def _check_group_members(members: list[Host], here: Path, findings: Findings) -> None:
    """One store cannot be in two domains, nor both lasting and passing."""
    domains = sorted({host.domain for host in members if host.domain} or {host.own_domain for host in members})
    if len(domains) > 1:
        hint = f"Give all the same domain, such as domain: {domains[0]}."
        findings.error(here, f"one shared root lies in the domains {', '.join(domains)}", hint)
    if len({host.ephemeral for host in members}) > 1:
        hint = "Put the ephemeral hosts in no group, or mark all of it ephemeral."
        findings.error(here, "the group mixes ephemeral and persistent hosts", hint)
    if len({host.excluded for host in members}) > 1:
        hint = "The excluded ones still see the shared files."
        findings.warning(here, "the group mixes excluded hosts and others", hint)


def _check_globs(fleet: Fleet, findings: Findings) -> None:
    """One glob in two kinds: which kind a file is would depend on the order of lines alone."""
    owners: dict[str, str] = {}
    for kind in fleet.kinds:
        for index, glob in enumerate(kind.paths):
            if owners.setdefault(glob, kind.name) != kind.name:
                path: Path = ("kinds", owners[glob], "paths")
                path = ("kinds", kind.name, "paths", index) if ("kinds", kind.name) in findings.lines else path
                both = f"the kinds {owners[glob]} and {kind.name} both claim {glob}"
                findings.error(path, both, f"Give {kind.name} other paths, or paths: [].", glob)


def _check_receive(fleet: Fleet, findings: Findings) -> None:
    """Kinds that a host is not to receive, and that there are not; kinds that every host of a role refuses."""
    kinds = tuple(kind.name for kind in fleet.kinds)
    for host in fleet.hosts.values():
        for name in host.receive:
            if name not in kinds:
                hint = did_you_mean(name, kinds, f"Kinds are {', '.join(kinds)}.")
                findings.error(("hosts", host.name, "receive", name), "there is no such kind", hint, name)
    for kind in fleet.kinds:
        refused = any(host.receive.get(kind.name) is False for host in fleet.hosts.values())
        if len(fleet.hosts) > 1 and refused and not any(fleet.receives(name, kind.name) for name in fleet.hosts):
            message = f"no host receives the kind {kind.name}: its artifacts would stay at risk for ever"
            findings.error(("kinds", kind.name), message, "Let some host receive it, or exclude fewer hosts.")


def _check_host(host: Host, routing: SyncRoutingSettings, findings: Findings) -> None:
    """Contradictions within one entry."""
    path: Path = ("hosts", host.name)
    if host.issuer and host.ephemeral:
        hint = "Keep the CA key on a persistent host."
        findings.error((*path, "issuer"), "an ephemeral host cannot be an issuer", hint)
    for key, names, value in (
        ("excluded", routing.exclude_from_sync, host.excluded),
        ("ephemeral", routing.ephemeral_hosts, host.ephemeral),
    ):
        if host.name in (names or ()) and not value:
            hint = f"Remove it from {'exclude_from_sync' if key == 'excluded' else 'ephemeral_hosts'} or here."
            findings.error((*path, key), f"{key}: false contradicts sync_routing, which names this host", hint)


def _check_addresses(fleet: Fleet, findings: Findings) -> None:
    """Two hosts at one address, and loopback addresses that only work on one machine."""
    owners: dict[str, str] = {}
    for name, host in fleet.hosts.items():
        address = host.dial_address
        if address and owners.setdefault(address, name) != name:
            hint = f"Correct one of them; {owners[address]} has it too."
            findings.error(("hosts", name, "address"), f"{address} belongs to two hosts", hint, address)
    local = sorted(name for address, name in owners.items() if _is_loopback(address))
    if 0 < len(local) < len(owners):
        for name in local:
            hint = "Write the address that the others dial."
            findings.warning(("hosts", name, "address"), "other machines cannot dial a loopback address", hint)


def _is_loopback(address: str) -> bool:
    host = split_address(address)[0]
    return host in ("localhost", "::1") or (host.startswith("127.") and host.count(".") == 3)


def _check_roles(fleet: Fleet, findings: Findings) -> None:
    """Roles that nobody can serve: the kind would be wanted by no host at all."""
    roles = sorted({host.role for host in fleet.hosts.values()})
    for kind in fleet.kinds:
        for index, role in enumerate(kind.roles):
            here: Path = ("kinds", kind.name, "roles", index)
            hosts = [host for host in fleet.hosts.values() if host.role == role]
            if not hosts:
                hint = did_you_mean(role, roles, "It will apply to hosts that get this role later.")
                findings.warning(here, f"no listed host has the role {role}", hint, role)
            elif all(host.excluded for host in hosts):
                names = ", ".join(sorted(host.name for host in hosts)[:8])
                hint = "Remove it from exclude_from_sync, or the role from the kind."
                findings.error(here, f"every host of the role {role} is excluded from sync: {names}", hint, role)


def _check_stores(fleet: Fleet, findings: Findings) -> None:
    """More copies wanted than there are places. A fleet of one is only beginning and needs no telling."""
    stores = {host.nfs_group or host.name for host in fleet.hosts.values() if not host.excluded}
    if len(fleet.hosts) > 1 and len(stores) - 1 < fleet.routing.min_copies:
        message = f"{fleet.routing.min_copies} copies besides the origin's want more than {len(stores)} stores"
        hint = "Artifacts stay at risk until more hosts join; or lower min_copies."
        findings.warning(("sync_routing", "min_copies"), message, hint)
