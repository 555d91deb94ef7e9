"""The commented hosts file that `spore init` writes: what is needed, and every other setting with its default.

All names, defaults and meanings come from the models and from `protocol/fleet.py`, so that the file cannot drift.
"""

import json
import re
from collections.abc import Mapping

from node.config_schema import Setting, all_settings
from protocol.fleet import DEFAULT_KINDS, OTHER_BANDWIDTH, PROVIDER_BANDWIDTH, Bandwidth, Kind

# Words that YAML readers other than ours take for something else than text.
SPECIAL_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})

# What a setting without a default may look like; shown in comments only.
EXAMPLES = {
    "bandwidth_limit_mbps": "50",
    "bandwidth_limit": "400 Mbit/s",
    "metrics_port": "9464",
    "allowed_external_storage": '[{host: backup.example.com, path: /backups/fleet, schedule: "0 */6 * * *"}]',
    "max_bytes": "500 GiB",
    "expire_after": "90d",
    "receive": "{game: false}",
    "provider_limits": "{vast: 50 MB/s}",
    "peer_limits": "{runpod-*: 100 Mbit/s}",
    "exclude_from_sync": "[coordinator, dev-*]",
    "nfs_sharing_groups": "[[gpu-a, gpu-b]]",
    "ephemeral_hosts": "[vast-*, runpod-spot-*]",
    "flush_seconds": "8",
    "provider": "nebius",
    "region": "eu-north1",
    "domain": "rack-7",
    "root": "/data/training",
    "listen": "0.0.0.0:7946",
    "advertise": "203.0.113.7:40001",
    "ssh": "{host: 203.0.113.7, user: ubuntu, port: 22, key: ~/.ssh/id_ed25519}",
}


def starter_text(cluster: str, node: str, address: str, others: Mapping[str, str]) -> str:
    """The file for a new cluster: the issuer, and other hosts by name and address. The caller has checked the names."""
    settings = all_settings()
    shared = _commented([entry for entry in settings if entry.section == "sync_routing"], "  ")
    own = [entry for entry in settings if entry.section == "hosts" and entry.name not in ("address", "issuer", "role")]
    return "\n".join(
        [
            "# The fleet: one file for agents, the Ansible inventory and the simulator.",
            "# A line that begins with # shows a setting with its default, or an example where there is none.",
            "# `spore check` names every mistake; docs/configuration.md explains every setting.",
            "",
            f"cluster: {quoted(cluster)}",
            "",
            "hosts:",
            f"  {quoted(node)}:",
            f"    address: {json.dumps(address)}",
            "    role: worker",
            "    issuer: true  # keeps the cluster's CA key and admits nodes",
            *_commented(own, "    "),
            "    # Whatever stands under sync_routing can be stated here too, for this host alone.",
            *[f"  {quoted(name)}: {{address: {json.dumps(there)}, role: worker}}" for name, there in others.items()],
            "",
            "sync_routing:",
            "  # Egress in megabytes per second where neither host nor environment states a limit:",
            f"  # {provider_line()}",
            *shared,
            "",
            "kinds:",
            "  # What is stated here changes these; other names add kinds. Roles restrict who wants copies.",
            *[f"  # {kind_line(kind)}" for kind in DEFAULT_KINDS],
            "",
        ]
    )


def quoted(name: str) -> str:
    """A name as every YAML reader takes it for text."""
    plain = re.fullmatch(r"[a-z][a-z0-9-]*", name) and name not in SPECIAL_WORDS
    return name if plain else json.dumps(name)


def provider_line() -> str:
    """The provider table on one line."""
    parts = [f"{name} {_megabytes(limit)}" for name, limit in PROVIDER_BANDWIDTH.items()]
    return ", ".join([*parts, f"others {_megabytes(OTHER_BANDWIDTH)}"])


def _megabytes(limit: Bandwidth) -> str:
    return "none" if limit.bytes_per_second is None else f"{limit.bytes_per_second / 1_000_000:g}"


def kind_line(kind: Kind) -> str:
    """One kind as an entry of `kinds`."""
    parts = [f"paths: {json.dumps(list(kind.paths))}", f"namespace: {kind.namespace}", f"strategy: {kind.strategy}"]
    parts += [f"versions: {kind.versions}"] + ([f"snapshot: {kind.snapshot}"] if kind.snapshot else [])
    return f"{kind.name}: {{{', '.join(parts)}}}"


def _commented(settings: list[Setting], indent: str) -> list[str]:
    """Two comment lines for each setting: what it means, and how it is written."""
    lines = []
    for entry in settings:
        value = EXAMPLES.get(entry.name, entry.default) if entry.default == "—" else entry.default
        value = {"ephemeral": "false", "excluded": "false"}.get(entry.name, value)
        lines += [f"{indent}# {entry.meaning} ({entry.unit})", f"{indent}# {entry.name}: {value}"]
    return lines
