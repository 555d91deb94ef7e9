"""The settings of a hosts file: their names, units, bounds and meanings, as pydantic models.

A field that is not stated is None here; what then holds is decided by the defaults in `protocol/fleet.py` alone.
`SETTINGS` lists every setting with its default, for the starter file and for the test that guards the documentation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import ErrorDetails

from node import config_values as values
from node.config_problems import PROBLEMS_MAX, BadValueError, Findings, Path, did_you_mean, shown
from protocol.fleet import GIB, MIB, Bandwidth, Host, Kind, Priority, Routing, Ssh

DAY_SECONDS = 86400.0  # no timer of an agent is meant to be rarer than daily
LIST_MAX = 1000  # more patterns or groups than a fleet has hosts are a mistake, and each is tried per host


def _reads(read: Callable[[str], object]) -> PlainValidator:
    return PlainValidator(values.scalar(read))


def _seconds(least: float, most: float) -> PlainValidator:
    return _reads(partial(values.read_seconds, least=least, most=most))


def _count(least: int, most: int) -> PlainValidator:
    return _reads(partial(values.read_count, least=least, most=most))


def _choice(*choices: str) -> PlainValidator:
    return _reads(partial(values.read_choice, choices=choices))


def _bytes(least: int) -> PlainValidator:
    return _reads(partial(values.read_bytes, least=least))


def _setting(unit: str, meaning: str, **more: Any) -> Any:
    """A setting that need not be stated."""
    return Field(None, description=meaning, json_schema_extra={"unit": unit}, **more)


Node = Annotated[str, _reads(values.read_node)]
Pattern = Annotated[str, _reads(values.read_pattern)]
Provider = Annotated[str, _reads(values.read_label)]
Rate = Annotated[Bandwidth, _reads(values.read_bandwidth)]
Role = Annotated[str, _reads(values.read_role)]
Glob = Annotated[str, _reads(values.read_glob)]
Address = Annotated[str | None, _reads(values.read_address)]
Label = Annotated[str | None, _reads(values.read_label)]
Flag = Annotated[bool | None, _reads(values.read_flag)]
Text = Annotated[str | None, _reads(values.read_text)]
FilePath = Annotated[str | None, _reads(values.read_path)]
Percent = Annotated[float | None, _reads(values.read_percent)]


class Section(BaseModel):
    """What all sections share: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class ExternalSettings(Section):
    """One entry of `allowed_external_storage`."""

    host: Annotated[str, _reads(values.read_host_name)] = Field(
        description="the machine outside the fleet", json_schema_extra={"unit": "host name"}
    )
    path: Annotated[str, _reads(values.read_path)] = Field(
        description="the folder on it", json_schema_extra={"unit": "path"}
    )
    schedule: Annotated[str, _reads(values.read_schedule)] = Field(
        "0 */6 * * *", description="when copies are due, as cron writes it, in UTC", json_schema_extra={"unit": "cron"}
    )
    ssh: "SshSettings | None" = _setting("section", "how SSH reaches it; `key` and `host_key` are needed")


class SharedSettings(Section):
    """What stands under `sync_routing` and, to override it, in a host's entry."""

    auto_sync_interval_seconds: Annotated[float | None, _seconds(0.1, DAY_SECONDS)] = _setting(
        "seconds", "rescan, look at what is pending, and take at most one snapshot of each changed database"
    )
    gossip_interval_seconds: Annotated[float | None, _seconds(0.1, DAY_SECONDS)] = _setting(
        "seconds", "the upper bound between digests exchanged when nothing happens"
    )
    max_concurrent_syncs: Annotated[int | None, _count(1, 64)] = _setting(
        "count", "transfers of large artifacts at one time, in each direction"
    )
    max_relays: Annotated[int | None, _count(0, 64)] = _setting(
        "count", "artifacts carried at one time for nodes that cannot reach each other; 0: none"
    )
    bandwidth_limit_mbps: Annotated[Bandwidth | None, _reads(values.read_bandwidth_mbps)] = _setting(
        "megabytes per second", "the egress limit in payload bytes; or write `bandwidth_limit`"
    )
    bandwidth_limit: Annotated[Bandwidth | None, _reads(values.read_bandwidth)] = _setting(
        "rate with unit", "the egress limit with its unit, such as `400 Mbit/s`, or `none`"
    )
    provider_limits: dict[Provider, Rate] | None = _setting(
        "section of rates", "egress budgets towards all hosts of a provider together, as `vast: 50 MB/s`"
    )
    peer_limits: dict[Pattern, Rate] | None = _setting(
        "section of rates", "egress budgets towards each host that a pattern matches, as `runpod-*: 100 Mbit/s`"
    )
    max_disk_usage_percent: Percent = _setting(
        "percent", "used / (used + available), as df prints it, above which nothing is held for others"
    )
    min_free_disk_percent: Percent = _setting(
        "percent", "the same bound from the other side; stated alone, the other follows; of two the stricter wins"
    )
    min_free_bytes: Annotated[int | None, _bytes(0)] = _setting(
        "size", "below this much free space the node's own new artifacts are refused too"
    )
    max_bytes: Annotated[int | None, _bytes(0)] = _setting(
        "size", "at most this much is held for others, whatever the disk's size"
    )
    emergency_disk_percent: Percent = _setting(
        "percent", "above it (and above the cap) copies that enough other nodes confirm make room"
    )
    min_copies: Annotated[int | None, _count(1, 16)] = _setting(
        "count", "receipts from other stores before an artifact is durable"
    )
    dial_seconds_max: Annotated[float | None, _seconds(0.1, 300)] = _setting(
        "seconds", "how long a connection may take to be made"
    )
    settle_seconds: Annotated[float | None, _seconds(0, 300)] = _setting(
        "seconds", "a file is finished when unchanged this long, where the kernel cannot tell"
    )
    snapshot_seconds_min: Annotated[float | None, _seconds(0, DAY_SECONDS)] = _setting(
        "seconds", "the least time between two snapshots of one database"
    )
    flush_seconds: Annotated[float | None, _seconds(0, 600)] = _setting(
        "seconds",
        "how long a stopping agent pushes what is at risk before it exits; unless stated, the provider decides",
    )
    copy_max: Annotated[int | None, _bytes(0)] = _setting(
        "size", "up to this size a file is copied to accept it; above, it is accepted by reference"
    )
    wal_bytes_max: Annotated[int | None, _bytes(MIB)] = _setting(
        "size", "the write-ahead log's bound; at it, new artifacts wait"
    )
    scrub_days: Annotated[float | None, _seconds(0, 3650)] = _setting(
        "days", "all that is held is read again within so many days; 0: only by `spore verify`"
    )
    staging_bytes_max: Annotated[int | None, _bytes(MIB)] = _setting(
        "size", "the bound of all unfinished incoming transfers together"
    )
    metrics_port: Annotated[int | None, _count(1, 65535)] = _setting(
        "port", "shows metrics without TLS on loopback too; only the node's own port does unless said"
    )
    allowed_external_storage: list[ExternalSettings] | None = _setting(
        "list", "places outside the fleet that may receive backups", max_length=64
    )


class SyncRoutingSettings(SharedSettings):
    """The section `sync_routing`."""

    exclude_from_sync: list[Pattern] | None = _setting(
        "list of patterns", "hosts that never hold copies; they still send, gossip and get", max_length=LIST_MAX
    )
    nfs_sharing_groups: list[list[Node]] | None = _setting(
        "list of lists of hosts", "hosts that share one root: one store, one copy", max_length=LIST_MAX
    )
    ephemeral_hosts: list[Pattern] | None = _setting(
        "list of patterns", "hosts that can vanish without notice", max_length=LIST_MAX
    )


class KindSettings(Section):
    """One entry of `kinds`. For a default kind only what is stated changes."""

    paths: list[Glob] | None = _setting(
        "list of globs", "the files of this kind below the root; `**` is any number of folders", max_length=64
    )
    namespace: Annotated[str | None, _choice("cluster", "node")] = _setting(
        "cluster, node", "`node`: every node has its own names; `cluster`: one name, one artifact"
    )
    strategy: Annotated[str | None, _choice("hybrid", "broadcast", "pull")] = _setting(
        "hybrid, broadcast, pull", "to `min_copies` and the roles; to every eligible host; or on request"
    )
    roles: list[Role] | None = _setting("list of roles", "the roles that want it; none: no restriction", max_length=64)
    versions: Annotated[int | None, _count(1, 1000)] = _setting("count", "durable versions that are kept")
    snapshot: Annotated[str | None, _choice("sqlite")] = _setting(
        "sqlite", "take snapshots of live SQLite databases instead of reading the files"
    )
    scope: Annotated[str | None, _choice("cluster", "peers")] = _setting(
        "cluster", "who is concerned; `peers` is reserved"
    )
    min_copies: Annotated[int | None, _count(1, 16)] = _setting("count", "as in `sync_routing`, for this kind")
    copy_max: Annotated[int | None, _bytes(0)] = _setting("size", "as in `sync_routing`, for this kind")
    expire_after: Annotated[float | None, _seconds(60, 100 * 365 * DAY_SECONDS)] = _setting(
        "seconds", "versions older than this go everywhere, the newest too; never what is at risk"
    )
    delete: Annotated[str | None, _choice("ignore", "propagate")] = _setting(
        "ignore, propagate", "what it means that a user deletes a watched file: nothing, or as `spore rm`"
    )
    priority: Annotated[Priority | None, _choice("low", "normal", "high", "critical")] = _setting(
        "low, normal, high, critical", "what goes first when not everything can, as before an ephemeral host ends"
    )


class SshSettings(Section):
    """How a host is reached over SSH, by deployment and by agents that cannot reach its own port."""

    host: Annotated[str | None, _reads(values.read_host_name)] = _setting(
        "host name", "where SSH reaches it, when that is not the host of its address"
    )
    user: Annotated[str | None, _reads(values.read_user)] = _setting("name", "the login")
    port: Annotated[int | None, _count(1, 65535)] = _setting("port", "the SSH port")
    key: FilePath = _setting("path", "a private key file on the machine that connects")
    host_key: Text = _setting("public key", "the host's own key, pinned; agents use no SSH without it")
    command: Text = _setting("command", "how `spore` is run there, for agents that fetch over rsync")
    dir: FilePath = _setting("path", "the node's folder there, when it is not the default of that login")


class HostSettings(SharedSettings):
    """One entry of `hosts`: the node, and whatever of `sync_routing` differs there."""

    address: Address = _setting(
        "host:port", "where others dial it; without one it only dials out; port 7946 unless said"
    )
    provider: Label = _setting("name", "whose machine it is; decides domain and bandwidth")
    region: Label = _setting("name", "where the provider runs it; part of the domain")
    domain: Label = _setting("name", "the failure domain, instead of provider and region")
    role: Annotated[str | None, _reads(values.read_role)] = _setting("name", "what it does, as kinds name it")
    root: FilePath = _setting("path", "the folder of users' files; `files` in the node's folder unless said")
    listen: Annotated[str | None, _reads(partial(values.read_address, binds=True))] = _setting(
        "host:port", "what it binds; every interface at the address's port unless said"
    )
    advertise: Address = _setting("host:port", "where others dial it, when that differs from `address`")
    sync_priority: Annotated[Priority | None, _choice("low", "normal", "high", "critical")] = _setting(
        "low, normal, high, critical", "the order in which hosts are served"
    )
    ephemeral: Flag = _setting("true, false", "overrides the patterns of `ephemeral_hosts`")
    excluded: Flag = _setting("true, false", "overrides the patterns of `exclude_from_sync`")
    receive: dict[Role, Annotated[bool, _reads(values.read_flag)]] | None = _setting(
        "kind: true, false", "kinds that it holds or, with false, never becomes a holder of; the others it holds"
    )
    issuer: Flag = _setting("true, false", "it keeps the cluster's CA key and admits nodes")
    ssh: SshSettings | None = _setting("section", "how it is reached over SSH")


class FileSettings(Section):
    """The top level. The sections are read one by one, so that a mistake in one does not hide those in others."""

    cluster: Annotated[str | None, _reads(values.read_cluster)] = _setting("name", "the cluster's name (required)")
    sync_routing: Any = _setting("section", "how nodes sync, unless their entries say otherwise")
    kinds: Any = _setting("section", "the kinds of artifacts, beside or instead of the default ones")
    hosts: Any = _setting("section", "every listed node by its id (required)")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as it is documented. Made here; read by the starter file and the test of the documentation."""

    section: str
    name: str
    unit: str
    default: str
    meaning: str


# The fields of the values in `protocol/fleet.py` that bear another name than the key in the file.
FIELD_NAMES: Mapping[str, str] = {
    "copy_max": "copy_max_bytes",
    "bandwidth_limit_mbps": "bandwidth_limit",
    "expire_after": "expire_after_seconds",
}
ENVIRONMENT: Mapping[str, str] = {
    "SPORE_SYNC_INTERVAL": "auto_sync_interval_seconds",
    "SPORE_GOSSIP_INTERVAL": "gossip_interval_seconds",
    "SPORE_SYNC_MAX_CONCURRENT": "max_concurrent_syncs",
    "SPORE_SYNC_BANDWIDTH_MBPS": "bandwidth_limit_mbps",
    "SPORE_SYNC_MAX_DISK_USAGE": "max_disk_usage_percent",
    "SPORE_FLUSH_SECONDS": "flush_seconds",
}
# What a machine that the hosts file does not list, or not wholly, says of itself.
HOST_ENVIRONMENT: Mapping[str, str] = {
    "SPORE_ADVERTISE": "advertise",
    "SPORE_LISTEN": "listen",
    "SPORE_PROVIDER": "provider",
    "SPORE_REGION": "region",
    "SPORE_EPHEMERAL": "ephemeral",
}


def default_text(value: object, unit: str) -> str:
    """A default as a user would write it; a dash when nothing is stated."""
    if value is None or value in ((), "", {}):
        return "—"
    if isinstance(value, bool):
        return str(value).lower()
    if unit == "size" and isinstance(value, int):
        scale, suffix = (GIB, "GiB") if value % GIB == 0 else (MIB, "MiB")
        return f"{value // scale} {suffix}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _settings(section: str, model: type[Section], defaults: object, skip: frozenset[str]) -> list[Setting]:
    """The settings of one section, with the defaults that its value in `protocol/fleet.py` has."""
    listed = []
    for name, info in model.model_fields.items():
        extra = info.json_schema_extra
        unit = str(extra["unit"]) if isinstance(extra, dict) else ""
        stated = getattr(defaults, FIELD_NAMES.get(name, name), None)
        value = stated if stated is not None or info.is_required() else info.default
        if name not in skip:
            listed.append(Setting(section, name, unit, default_text(value, unit), info.description or ""))
    return listed


def all_settings() -> tuple[Setting, ...]:
    """Every setting of every section, in the order of the models."""
    shared = frozenset(SharedSettings.model_fields)
    return (
        *_settings("", FileSettings, None, frozenset()),
        *_settings("sync_routing", SyncRoutingSettings, Routing(), frozenset()),
        *_settings("allowed_external_storage", ExternalSettings, None, frozenset()),
        *_settings("kinds", KindSettings, Kind("x"), frozenset()),
        *_settings("hosts", HostSettings, Host("x"), shared),
        *_settings("ssh", SshSettings, Ssh(), frozenset()),
    )


SECTION_MODELS: Mapping[str, type[Section]] = {
    "sync_routing": SyncRoutingSettings,
    "hosts": HostSettings,
    "kinds": KindSettings,
    "the top level": FileSettings,
}
# Lists of hosts under `sync_routing` have another form in the entry of one host.
FORM_IN_A_HOST: Mapping[str, str] = {
    "exclude_from_sync": "Write excluded: true in the host's entry.",
    "ephemeral_hosts": "Write ephemeral: true in the host's entry.",
    "nfs_sharing_groups": "Name the group under sync_routing.",
}
M = TypeVar("M", bound=Section)


def read_section(model: type[M], content: object, path: Path, findings: Findings) -> M:
    """Read one section as far as it can be read; what cannot be is noted and left out.

    All fields of the models read this way may be absent, so that what remains is always a section.
    """
    if not isinstance(content, dict):
        if content is not None:  # a section whose lines are all commented out is an empty one
            findings.error(
                path, "a section of `key: value` lines belongs here", "Indent the settings below it.", content
            )
        content = {}
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    for problem in problems[:PROBLEMS_MAX]:
        _note(problem, model, path, findings)
    unusable = {str(problem["loc"][0]) for problem in problems}
    return model.model_validate({key: value for key, value in content.items() if key not in unusable})


def _note(problem: ErrorDetails, model: type[Section], path: Path, findings: Findings) -> None:
    """Turn what pydantic found into a sentence of ours."""
    where, value = (*path, *problem["loc"]), problem.get("input")
    cause = problem.get("ctx", {}).get("error")
    key = str(problem["loc"][-1])
    if isinstance(cause, BadValueError):
        findings.error(where, cause.message, cause.suggestion, value)
    elif problem["type"] == "extra_forbidden":
        findings.error(where, "this key is unknown", _instead(key, model, problem["loc"], path), value)
    elif problem["type"] == "missing":
        findings.error(where, "this key is missing", f"Add {key}.")
    elif problem["type"] == "too_long":
        findings.error(where, "this list is too long", "Use patterns instead of single names.")
    elif problem["type"] == "list_type":
        findings.error(where, f"{shown(value)} stands where a list belongs", f"Write {key}: [first, second].", value)
    else:
        findings.error(where, "a section of `key: value` lines belongs here", "Indent its settings.", value)


def _instead(key: str, model: type[Section], loc: tuple[int | str, ...], path: Path) -> str:
    """What an unknown key was probably meant to be: a neighbour's name, or a setting of another section."""
    inner: Mapping[str, type[Section]] = {"ssh": SshSettings, "allowed_external_storage": ExternalSettings}
    here = inner.get(str(loc[0]), model) if len(loc) > 1 else model
    if here is HostSettings and key in FORM_IN_A_HOST:
        return FORM_IN_A_HOST[key]
    elsewhere = [name for name, other in SECTION_MODELS.items() if key in other.model_fields]
    if elsewhere and len(loc) == 1:
        return f"It stands under {elsewhere[0]}."
    listing = f"Known here are {', '.join(sorted(here.model_fields))}."
    return did_you_mean(key, here.model_fields, listing if len(listing) < 120 else "Remove it, or see the manual.")


def stated(settings: Section, target: type) -> dict[str, Any]:
    """The settings that the file states and that are fields of the target, under the names they have there."""
    known = {entry.name for entry in fields(target)}
    found = {FIELD_NAMES.get(key, key): getattr(settings, key) for key in sorted(settings.model_fields_set)}
    kept = {key: value for key, value in found.items() if key in known and value is not None}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()}
