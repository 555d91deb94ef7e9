"""What Prometheus needs to watch a fleet, generated from its hosts file.

    python deploy/monitoring/generate.py distributed_hosts.yaml OUT --identity DIR/identity

writes `OUT/spore-scrape.yml` (for `scrape_config_files`), `OUT/targets/NODE.json` (service discovery: a node that moves
is found without a restart) and `OUT/spore-alerts.yml` (for `rule_files`). Metrics are read over mutual TLS:
`--identity` is the folder of a node's certificate on the machine that Prometheus runs on. Every node has a scrape job
of its own, because a job verifies one name, and certificates are verified by node id.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from node.config import load_fleet
from protocol.fleet import Fleet, Host

RULES = Path(__file__).with_name("spore-alerts.yml")
DNS_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


def main() -> None:
    parser = argparse.ArgumentParser(description="write what Prometheus needs to watch a fleet")
    parser.add_argument("hosts_file", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--identity", type=Path, required=True, help="the folder of a node's certificate, there")
    options = parser.parse_args()
    write(load_fleet(options.hosts_file), options.out, options.identity)


def write(fleet: Fleet, out: Path, identity: Path) -> None:
    """All files, whole; targets of hosts that are gone are removed."""
    targets = out / "targets"
    targets.mkdir(parents=True, exist_ok=True)
    watched = {name: host for name, host in sorted(fleet.hosts.items()) if host.dial_address}
    for left in targets.glob("*.json"):
        if left.stem not in watched:
            left.unlink()
    for host in watched.values():
        (targets / f"{host.name}.json").write_text(json.dumps([target(fleet, host)], indent=2) + "\n")
    jobs = [job(host, targets, identity) for host in watched.values()]
    (out / "spore-scrape.yml").write_text(yaml.safe_dump({"scrape_configs": jobs}, sort_keys=False))
    shutil.copy(RULES, out)


def target(fleet: Fleet, host: Host) -> dict[str, Any]:
    """One node as file-based service discovery reads it."""
    labels = {
        "cluster": fleet.cluster,
        "node": host.name,
        "role": host.role,
        "domain": fleet.domain(host.name),
        "ephemeral": str(host.ephemeral).lower(),
    }
    return {"targets": [host.dial_address], "labels": labels}


def job(host: Host, targets: Path, identity: Path) -> dict[str, Any]:
    """The scrape job of one node. An id that is no DNS name is in no certificate as one: its name is not checked."""
    named = {"server_name": host.name} if DNS_NAME.fullmatch(host.name) else {"insecure_skip_verify": True}
    files = {"ca_file": "ca.pem", "cert_file": "node.pem", "key_file": "node.key"}
    return {
        "job_name": f"spore/{host.name}",
        "scheme": "https",
        "tls_config": {key: str(identity / name) for key, name in files.items()} | named,
        "file_sd_configs": [{"files": [str(targets / f"{host.name}.json")]}],
    }


if __name__ == "__main__":
    main()
