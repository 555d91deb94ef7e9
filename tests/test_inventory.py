"""The Ansible inventory is the hosts file: how a host is reached, in which groups it is, and who may stop together."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import parse_fleet

pytest.importorskip("ansible", reason="ansible-core is not installed (pip install '.[deploy]')")
PLAYBOOKS = Path(__file__).resolve().parent.parent / "deploy" / "ansible"
SPECIFICATION = importlib.util.spec_from_file_location("spore_hosts", PLAYBOOKS / "plugins/inventory/spore_hosts.py")
assert SPECIFICATION is not None
assert SPECIFICATION.loader is not None
inventory = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(inventory)

HOSTS = """
cluster: fleet
sync_routing:
  ephemeral_hosts: [vast-*]
  exclude_from_sync: [boss]
  nfs_sharing_groups: [[gh-a, gh-b]]
  flush_seconds: 20
hosts:
  boss: {address: 10.0.0.1:7946, provider: hetzner, region: fsn1, role: coordinator, issuer: true}
  gh-a: {address: 10.0.0.2:7946, provider: lambda, role: training, root: /nfs/training, ssh: {user: ubuntu, port: 2222}}
  gh-b: {address: 10.0.0.3:7946, provider: lambda, role: training, root: /nfs/training}
  vast-1: {address: 10.0.0.4:7946, advertise: 203.0.113.5:40001, provider: vast, ssh: {host: ssh4.vast.ai, port: 30123}}
  home: {role: selfplay}
"""


def variables(name: str, text: str = HOSTS) -> dict[str, Any]:
    fleet = parse_fleet(text)
    found: dict[str, Any] = inventory.host_variables(fleet, fleet.hosts[name])
    return found


def test_ssh_goes_where_the_entry_says_and_else_where_the_node_is_dialled() -> None:
    assert (variables("gh-a")["ansible_host"], variables("gh-a")["ansible_port"]) == ("10.0.0.2", 2222)
    assert variables("gh-a")["ansible_user"] == "ubuntu"
    assert (variables("vast-1")["ansible_host"], variables("vast-1")["ansible_port"]) == ("ssh4.vast.ai", 30123)
    assert "ansible_port" not in variables("gh-b")


def test_a_pinned_host_key_is_the_only_one_accepted() -> None:
    pinned = HOSTS.replace("{user: ubuntu, port: 2222}", "{host_key: ssh-ed25519 AAAAC3Nz}")
    arguments = variables("gh-a", pinned)["ansible_ssh_common_args"]
    assert "StrictHostKeyChecking=yes" in arguments
    assert "'KnownHostsCommand=/bin/echo %H ssh-ed25519 AAAAC3Nz'" in arguments
    assert "accept-new" not in arguments
    assert "accept-new" in variables("gh-b")["ansible_ssh_common_args"]


def test_the_role_is_told_what_depends_on_the_entry() -> None:
    facts = variables("gh-a")
    assert (facts["spore_root"], facts["spore_mates"], facts["spore_flush_seconds"]) == (
        "/nfs/training",
        ["gh-b"],
        20.0,
    )
    assert facts["spore_domain"] == "lambda"


def test_the_command_line_shows_groups_and_refuses_a_bad_file_with_every_mistake(tmp_path: Path) -> None:
    command = shutil.which("ansible-inventory", path=str(Path(sys.executable).parent))
    assert command is not None
    (tmp_path / "distributed_hosts.yaml").write_text(HOSTS)

    def listed() -> subprocess.CompletedProcess[str]:
        words = [command, "-i", str(tmp_path / "distributed_hosts.yaml"), "--list"]
        return subprocess.run(words, cwd=PLAYBOOKS, capture_output=True, text=True, check=False)

    groups = json.loads(listed().stdout)
    assert groups["spore"]["hosts"] == ["gh-a", "gh-b", "vast-1", "boss"]  # the issuer last
    assert groups["unreachable"]["hosts"] == ["home"]
    assert groups["nfs_gh_a"]["hosts"] == ["gh-a", "gh-b"]
    assert groups["ephemeral"]["hosts"] == ["vast-1"]
    assert groups["first_issuer"]["hosts"] == ["boss"]
    assert groups["excluded"]["hosts"] == ["boss"]
    (tmp_path / "distributed_hosts.yaml").write_text(
        HOSTS.replace("role:", "rolle:").replace("flush_seconds: 20", "x: 1")
    )
    said = " ".join(listed().stderr.split())
    assert "this key is unknown" in said
    assert "Did you mean role?" in said


FLEETS = st.dictionaries(st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True), st.sampled_from("abcdef"), max_size=80)


@given(FLEETS, st.integers(0, 3))
def test_batches_never_span_domains_and_hold_every_host_once(domains: dict[str, str], issuers: int) -> None:
    last = sorted(domains)[:issuers]
    made = inventory.batches(domains, last)
    assert sorted(name for batch in made for name in batch) == sorted(domains)
    for batch in made:
        assert len({domains[name] for name in batch}) == 1
        assert len(batch) <= max(1, len(domains) // 10)
    if domains:
        assert len(made[0]) == 1
        assert [name for batch in made for name in batch][len(domains) - len(last) :] == sorted(
            last, key=lambda name: (domains[name], name)
        )


def test_a_fleet_in_one_domain_stops_one_host_at_a_time() -> None:
    made = inventory.batches({f"n{number:02}": "one" for number in range(40)})
    assert {len(batch) for batch in made} == {1}


def test_a_large_fleet_takes_about_ten_batches() -> None:
    made = inventory.batches({f"n{number:03}": f"d{number % 4}" for number in range(400)})
    assert 10 <= len(made) <= 15
