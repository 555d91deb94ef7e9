"""The files for Prometheus say what the hosts file says, and name no metric that does not exist."""

import importlib.util
import json
import re
from pathlib import Path

import yaml

from node.config import parse_fleet
from node.metrics import GAUGES

ROOT = Path(__file__).resolve().parent.parent
SPECIFICATION = importlib.util.spec_from_file_location("generate", ROOT / "deploy/monitoring/generate.py")
assert SPECIFICATION is not None
assert SPECIFICATION.loader is not None
generate = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(generate)

HOSTS = """
cluster: fleet
sync_routing: {ephemeral_hosts: [spot-*]}
hosts:
  a: {address: 10.0.0.1:7946, provider: hetzner, region: fsn1, role: training, issuer: true}
  spot-1: {address: 10.0.0.2:7946, advertise: 203.0.113.5:40001}
  odd_name: {address: 10.0.0.3:7946}
  home: {}
"""


def files(folder: Path) -> dict[str, str]:
    generate.write(parse_fleet(HOSTS), folder, Path("/var/lib/spore/identity"))
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_every_node_that_can_be_dialled_is_watched_by_its_own_name(tmp_path: Path) -> None:
    jobs = yaml.safe_load(files(tmp_path)["spore-scrape.yml"])["scrape_configs"]
    assert [job["job_name"] for job in jobs] == ["spore/a", "spore/odd_name", "spore/spot-1"]
    assert jobs[0]["tls_config"] == {
        "ca_file": "/var/lib/spore/identity/ca.pem",
        "cert_file": "/var/lib/spore/identity/node.pem",
        "key_file": "/var/lib/spore/identity/node.key",
        "server_name": "a",
    }
    assert jobs[1]["tls_config"]["insecure_skip_verify"] is True
    assert jobs[0]["file_sd_configs"] == [{"files": [str(tmp_path / "targets/a.json")]}]


def test_targets_are_where_others_dial_the_node_with_what_the_hosts_file_says(tmp_path: Path) -> None:
    (found,) = json.loads(files(tmp_path)["targets/spot-1.json"])
    assert found["targets"] == ["203.0.113.5:40001"]
    assert found["labels"]["ephemeral"] == "true"
    (other,) = json.loads(files(tmp_path)["targets/a.json"])
    assert other["labels"] == {
        "cluster": "fleet", "node": "a", "role": "training", "domain": "hetzner/fsn1", "ephemeral": "false",
    }  # fmt: skip


def test_targets_of_hosts_that_are_gone_are_removed(tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/gone.json").write_text("[]")
    assert "targets/gone.json" not in files(tmp_path)


def test_every_alert_is_about_metrics_that_exist_and_says_what_to_do(tmp_path: Path) -> None:
    (group,) = yaml.safe_load(files(tmp_path)["spore-alerts.yml"])["groups"]
    for rule in group["rules"]:
        named = set(re.findall(r"spore_[a-z_]+", rule["expr"]))
        assert named <= set(GAUGES), rule["alert"]
        assert named or rule["expr"].startswith("up{")
        assert rule["labels"]["severity"] in ("page", "warn")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]


def test_there_is_an_alert_for_each_way_in_which_a_fleet_fails_silently() -> None:
    rules = yaml.safe_load((ROOT / "deploy/monitoring/spore-alerts.yml").read_text())["groups"][0]["rules"]
    asked = " ".join(rule["expr"] for rule in rules)
    for metric in ("at_risk_oldest", "not_running", "accepting", "session_received", "certificate", "members_alive"):
        assert f"spore_{metric}" in asked
