"""The fleet as its hosts file describes it, and the one home of every policy default.

`node/config.py` makes these values from `distributed_hosts.yaml`; placement, the agent and the simulator read
them. Nothing here reads a file, an environment or a clock: what varies is an argument. Sizes are bytes, rates are
payload bytes per second, times are seconds; a megabyte in a rate is 1,000,000 bytes, as network links are sold.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any, Literal

MIB = 1 << 20
GIB = 1 << 30
MEGABYTE = 1_000_000

PORT_DEFAULT = 7946  # the port that gossip tools have used since serf; one port serves everything
ROLE_DEFAULT = "worker"
# An ephemeral host dies with two minutes' notice or none: what is pending there is looked at this often.
EPHEMERAL_SYNC_INTERVAL_SECONDS = 5.0
# First folders of a root that are ours: `.spore` holds stores and staging, `peers` what came from other nodes.
RESERVED_FOLDERS = (".spore", "peers")
RESERVED_KIND = "spore"  # our own replicated records (revocations, hosts files) stand under this name
BANDWIDTH_VARIABLE = "SPORE_SYNC_BANDWIDTH_MBPS"

Namespace = Literal["cluster", "node"]
Strategy = Literal["hybrid", "broadcast", "pull"]
Snapshot = Literal["sqlite"]
Scope = Literal["cluster", "peers"]
Priority = Literal["low", "normal", "high", "critical"]
Deletion = Literal["ignore", "propagate"]
PRIORITIES: tuple[Priority, ...] = ("critical", "high", "normal", "low")  # in the order of service


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """A stated egress limit; None bytes per second means: stated to be unlimited. From the hosts file or here."""

    bytes_per_second: int | None

    @classmethod
    def megabytes(cls, megabytes_per_second: float) -> "Bandwidth":
        """The limit of so many megabytes (not megabits) per second."""
        return cls(round(megabytes_per_second * MEGABYTE))


# What each provider's egress bears without throttling or surprise bills, as earlier fleets were tuned.
PROVIDER_BANDWIDTH: Mapping[str, Bandwidth] = {
    "hetzner": Bandwidth.megabytes(80),
    "lambda": Bandwidth.megabytes(100),
    "local": Bandwidth(None),
    "nebius": Bandwidth.megabytes(50),
    "runpod": Bandwidth.megabytes(100),
    "tailscale": Bandwidth.megabytes(100),
    "vast": Bandwidth.megabytes(50),
    "vultr": Bandwidth.megabytes(80),
}
# How long a stopping agent may push what is at risk: what the provider lets pass between its notice and the end, less
# what a sync and an exit take.
PROVIDER_FLUSH_SECONDS: Mapping[str, float] = {
    "aws": 110.0,  # two minutes between the interruption notice and the end
    "azure": 25.0,  # a Preempt event comes 30 s before, at least
    "gcp": 25.0,  # 30 s between the ACPI signal and the end
    "gke": 12.0,  # pods on spot nodes get 15 s
    "runpod": 4.0,  # SIGTERM, and SIGKILL five seconds later
}
WITHOUT_NOTICE = frozenset({"vast"})  # whoever stops paying, or is outbid, is gone between two packets
OTHER_FLUSH_SECONDS = 8.0  # within the ten seconds that container runtimes give between SIGTERM and SIGKILL
# An unknown uplink gets what a household fibre line bears beside its other users.
OTHER_BANDWIDTH = Bandwidth.megabytes(20)


@dataclass(frozen=True, slots=True)
class ExternalStorage:
    """A place outside the fleet that may receive backups. From the hosts file; read by what makes backups."""

    host: str
    path: str
    schedule: str
    ssh: "Ssh | None" = None


@dataclass(frozen=True, slots=True)
class Routing:
    """How one node syncs: the `sync_routing` section after overrides. Read by agent, core and simulator."""

    auto_sync_interval_seconds: float = 60.0
    gossip_interval_seconds: float = 30.0
    max_concurrent_syncs: int = 4
    max_relays: int = 4  # as many as syncs: what is carried costs our disk and uplink, and serves others
    bandwidth_limit: Bandwidth | None = None  # None: nothing stated here, the provider decides
    provider_limits: tuple[tuple[str, Bandwidth], ...] = ()  # egress towards all hosts of a provider together
    peer_limits: tuple[tuple[str, Bandwidth], ...] = ()  # egress towards each host that a pattern matches
    max_disk_usage_percent: float = 70.0
    min_free_disk_percent: float = 30.0
    min_free_bytes: int = GIB
    max_bytes: int | None = None  # held for others; None: the shares of the disk alone decide
    emergency_disk_percent: float = 90.0  # there a database that grows, or a log, is about to meet a full disk
    min_copies: int = 2
    dial_seconds_max: float = 10.0  # three lost SYN packets (1 + 2 + 4 s) and a handshake over a slow link
    settle_seconds: float = 2.0  # twice the coarsest mtime granularity met (1 s)
    snapshot_seconds_min: float = 5.0  # a floor below any trigger: copying a live database costs its whole size
    flush_seconds: float | None = None  # None: nothing stated here, the provider decides
    copy_max_bytes: int = 64 * MIB  # a copy this size takes under a second on any disk; above, by reference
    wal_bytes_max: int = GIB  # 16,384 small artifacts that nobody could be told about yet
    scrub_days: float = 30.0  # a disk that rots is noticed while other copies are still fresh
    staging_bytes_max: int = 64 * GIB  # four concurrent transfers of 16 GiB checkpoints
    metrics_port: int | None = None  # on loopback, metrics without TLS; None: only the node's own port
    allowed_external_storage: tuple[ExternalStorage, ...] = ()

    @property
    def disk_cap_percent(self) -> float:
        """The used percent of the disk above which nothing is held for others: the stricter of the two."""
        return min(self.max_disk_usage_percent, 100.0 - self.min_free_disk_percent)


@dataclass(frozen=True, slots=True)
class Kind:
    """The policy of one kind of artifact. From the hosts file or `DEFAULT_KINDS`; read by placement and watcher."""

    name: str
    paths: tuple[str, ...] = ()  # globs below the root; none: only what `spore put --kind` brings
    namespace: Namespace = "cluster"
    strategy: Strategy = "hybrid"
    roles: tuple[str, ...] = ()  # none: any role
    versions: int = 3  # the current one, the one that readers still have open, and one to go back to
    snapshot: Snapshot | None = None
    scope: Scope = "cluster"
    min_copies: int | None = None  # None: as `sync_routing` says
    copy_max_bytes: int | None = None  # None: as `sync_routing` says
    expire_after_seconds: float | None = None  # None: no version goes for its age
    delete: Deletion = "ignore"  # what the deletion of a watched file by a user means for the other nodes
    priority: Priority = "normal"  # before what else it is sent when not everything can be

    def matches(self, path: str) -> bool:
        """Whether a file at this path, relative to the root and separated by `/`, is of this kind."""
        return not is_reserved(path) and any(path_matches(pattern, path) for pattern in self.paths)


DEFAULT_KINDS: tuple[Kind, ...] = (
    # Every snapshot holds the whole database and all games of the older ones: three bridge a bad one.
    Kind("game", paths=("games/**/*.db",), namespace="node", snapshot="sqlite", versions=3),
    # Workers load the newest model; the one before it is in use, and one more allows stepping back.
    Kind("model", paths=("models/*.pth",), strategy="broadcast", versions=3),
    # Training sets are derived from the games and are the largest files: a superseded one is only weight.
    Kind("npz", paths=("training/*.npz",), versions=1),
    # The last checkpoint may be the one that diverged: a run resumes from one of the two before it.
    Kind("checkpoint", paths=("checkpoints/*",), versions=3),
)


@dataclass(frozen=True, slots=True)
class Ssh:
    """How SSH reaches a host, for deployment and for agents that cannot reach its own port. From the hosts file."""

    host: str | None = None  # where SSH reaches it, when that is not the host of its address
    user: str | None = None
    port: int = 22
    key: str | None = None  # a private key file on the machine that connects
    host_key: str | None = None  # the host's public key, pinned: without it, agents do not connect
    command: str = "spore"  # how the command line is run there
    dir: str | None = None  # the node's folder there; None: what the command takes by itself


@dataclass(frozen=True, slots=True)
class Host:
    """One node: its entry in the hosts file after patterns, or what an unlisted node said when it joined."""

    name: str
    address: str | None = None  # host:port that others dial; None: it cannot be dialled and dials out itself
    provider: str | None = None
    region: str | None = None
    domain: str | None = None
    role: str = ROLE_DEFAULT
    sync_priority: Priority = "normal"
    ephemeral: bool = False
    ephemeral_by: str = ""  # what says so: the entry, a pattern, a token, or the machine itself; no part of the meaning
    excluded: bool = False
    receive: Mapping[str, bool] = field(default_factory=dict)  # by kind; a kind not named is received
    issuer: bool = False
    nfs_group: str | None = None  # the first name of its group; None: shares its root with nobody
    root: str | None = None  # None: `files` in the node's folder
    listen: str | None = None  # host:port to bind; None: every interface, at the port of `address`
    advertise: str | None = None  # host:port that others dial instead of `address`
    bandwidth_limit: Bandwidth | None = None
    ssh: Ssh | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)  # fields of Routing that this host states itself
    listed: bool = True

    @property
    def dial_address(self) -> str | None:
        """The host:port at which others reach this node, or None when it can only dial out."""
        return self.advertise or self.address

    @property
    def listen_address(self) -> str:
        """The host:port that this node binds."""
        port = split_address(self.address)[1] if self.address else PORT_DEFAULT
        return self.listen or f"0.0.0.0:{port}"

    @property
    def own_domain(self) -> str:
        """The failure domain by this entry alone; `Fleet.domain` also knows NFS groups."""
        parts = (self.provider or "unspecified", self.region)
        return self.domain or "/".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The whole hosts file. `hash` covers its meaning, not its wording nor the nodes that `joined` unlisted."""

    cluster: str
    routing: Routing = field(default_factory=Routing)
    kinds: tuple[Kind, ...] = DEFAULT_KINDS
    hosts: Mapping[str, Host] = field(default_factory=dict)
    exclude_from_sync: tuple[str, ...] = ()
    ephemeral_hosts: tuple[str, ...] = ()
    nfs_sharing_groups: tuple[tuple[str, ...], ...] = ()
    joined: Mapping[str, Host] = field(default_factory=dict)
    hash: str = field(init=False, compare=False, default="")
    places: tuple[tuple[str, str], ...] = field(init=False, compare=False, default=())  # (host, domain), for the rings

    def __post_init__(self) -> None:
        """Compute once what is asked for all the time."""
        object.__setattr__(self, "hash", policy_hash(self))
        object.__setattr__(self, "places", tuple((node, self.domain(node)) for node in sorted(self.hosts)))

    def host(self, node: str) -> Host:
        """The entry of a node: listed, else as it joined, else the least that an unknown name can mean."""
        return self.hosts.get(node) or self.joined.get(node) or self.unlisted(node)

    def unlisted(
        self, node: str, *, address: str | None = None, provider: str | None = None, region: str | None = None
    ) -> Host:
        """The entry of a node that joined with an ephemeral token: only such a token admits unlisted names."""
        excluded = matches_any(self.exclude_from_sync, node)
        by = "it joined with an ephemeral token"
        return Host(node, address, provider, region, ephemeral=True, ephemeral_by=by, excluded=excluded, listed=False)

    def with_joined(self, host: Host) -> "Fleet":
        """This fleet with an unlisted host made known; the hash stays, for the file did not change."""
        return replace(self, joined={**self.joined, host.name: host})

    def routing_for(self, node: str) -> Routing:
        """The routing of one node: its own entry, then `sync_routing`; the bandwidth also by its provider."""
        host = self.host(node)
        routing = replace(self.routing, **dict(host.overrides), bandwidth_limit=self._bandwidth(host))
        if host.ephemeral and "auto_sync_interval_seconds" not in host.overrides:
            interval = min(routing.auto_sync_interval_seconds, EPHEMERAL_SYNC_INTERVAL_SECONDS)
            return replace(routing, auto_sync_interval_seconds=interval)
        return routing

    def egress_bytes_per_second(self, node: str, env: Mapping[str, str] | None = None) -> int | None:
        """The egress limit of a node, None for unlimited: environment, host, provider, then `sync_routing`.

        Raises ValueError with a full sentence when the environment's value is not a rate.
        """
        stated = (env or {}).get(BANDWIDTH_VARIABLE, "").strip()
        bandwidth = parse_megabytes_per_second(stated) if stated else self._bandwidth(self.host(node))
        return bandwidth.bytes_per_second

    def flush_seconds(self, node: str) -> float:
        """How long this node may push what is at risk before it exits: as stated, else by its provider."""
        stated = self.routing_for(node).flush_seconds
        provider = PROVIDER_FLUSH_SECONDS.get(self.host(node).provider or "", OTHER_FLUSH_SECONDS)
        return provider if stated is None else stated

    def notice_seconds(self, node: str) -> float:
        """How long before the end of this node's machine it is told: 0 where the provider says nothing."""
        return 0.0 if self.host(node).provider in WITHOUT_NOTICE else self.flush_seconds(node)

    def _bandwidth(self, host: Host) -> Bandwidth:
        """A provider outside the table has no figure of its own: the fleet-wide one comes before ours."""
        provider = PROVIDER_BANDWIDTH.get(host.provider or "")
        return host.bandwidth_limit or provider or self.routing.bandwidth_limit or OTHER_BANDWIDTH

    def domain(self, node: str) -> str:
        """The failure domain of a node. An NFS group lies within one: what a member states holds for all."""
        host = self.host(node)
        members = [self.host(name) for name in self.nfs_members(node)]
        stated = [member.domain for member in members if member.domain]
        return stated[0] if stated else (members[0] if members else host).own_domain

    def nfs_members(self, node: str) -> tuple[str, ...]:
        """The nodes that share one root with this one, itself included, sorted; empty when it shares with none."""
        group = self.host(node).nfs_group
        if group is None:
            return ()
        return tuple(sorted(name for name, host in self.hosts.items() if host.nfs_group == group))

    def kind(self, name: str) -> Kind | None:
        """The kind of this name, or None."""
        for kind in self.kinds:
            if kind.name == name:
                return kind
        return None

    def kind_of(self, artifact_name: str) -> Kind | None:
        """The kind of an artifact by its name (`<kind>/…`), or None when the file knows no such kind."""
        return self.kind(artifact_name.partition("/")[0])

    def kind_of_path(self, path: str) -> Kind | None:
        """The first kind, in the file's order, whose globs match a path relative to the root, or None."""
        return next((kind for kind in self.kinds if kind.matches(path)), None)

    def receives(self, node: str, kind: str) -> bool:
        """Whether a node may become a holder of a kind."""
        host = self.host(node)
        return not host.excluded and host.receive.get(kind, True)

    def min_copies(self, kind: Kind, origin: str) -> int:
        """How many receipts an artifact of this kind from this origin needs."""
        return kind.min_copies or self.routing_for(origin).min_copies

    def copy_max_bytes(self, kind: Kind, node: str) -> int:
        """Up to this size a node copies a file of this kind to accept it; above, it accepts by reference."""
        return self.routing_for(node).copy_max_bytes if kind.copy_max_bytes is None else kind.copy_max_bytes


def policy_hash(fleet: Fleet) -> str:
    """SHA-256, in hex, of the canonical JSON: equal for files that mean the same, whatever their wording."""
    meaning = {name: value for name, value in asdict(fleet).items() if name not in ("hash", "joined", "places")}
    for host in meaning["hosts"].values():
        del host["ephemeral_by"]
    canonical = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    return sha256(canonical.encode()).hexdigest()


def split_address(address: str) -> tuple[str, int]:
    """Host and port of a checked `host:port` or `[ipv6]:port`; the host comes without brackets."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def parse_megabytes_per_second(text: str) -> Bandwidth:
    """A limit written in megabytes per second, or `none`. Raises ValueError with a full sentence."""
    if text.strip().lower() == "none":
        return Bandwidth(None)
    try:
        megabytes = float(text)
    except ValueError:
        megabytes = 0.0
    # 1 kB/s is the least that makes progress; 1 TB/s is above any link, and refuses infinity and overflow.
    if not 0.001 <= megabytes <= 1_000_000:
        raise ValueError(f"{text!r} is not a rate: write megabytes per second, such as 50, or none.")
    return Bandwidth.megabytes(megabytes)


def matches_any(patterns: tuple[str, ...], node: str) -> bool:
    """Whether a node id is matched by one of the patterns (`*`, `?`, `[…]`)."""
    return any(fnmatchcase(node, pattern) for pattern in patterns)


def is_reserved(path: str) -> bool:
    """Whether a path relative to the root lies in a folder that is ours."""
    return path.partition("/")[0] in RESERVED_FOLDERS


def path_matches(pattern: str, path: str) -> bool:
    """Whether a glob matches a whole relative path: `**` is any number of folders, `*` stays within one name.

    Each pattern part moves a row of "the parts so far match the first i names", so that no pattern is slow.
    """
    names = path.split("/")
    row = [True] + [False] * len(names)
    for part in pattern.split("/"):
        if part == "**":
            row = [any(row[: i + 1]) for i in range(len(row))]
        else:
            row = [False] + [row[i] and fnmatchcase(name, part) for i, name in enumerate(names)]
    return row[-1]
