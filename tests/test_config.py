"""Reading the hosts file and the environment: what is accepted, and the sentence for everything that is not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.config import (
    ConfigError,
    Problem,
    apply_environment,
    check_report,
    inspect_file,
    inspect_fleet,
    load_fleet,
    parse_fleet,
    starter_hosts_file,
)
from node.config_problems import PROBLEMS_MAX
from node.config_schema import ENVIRONMENT
from protocol.fleet import GIB, MIB, Bandwidth, ExternalStorage, Fleet, Host, Routing, Ssh

TOP = Path(__file__).resolve().parent.parent
MB = 1_000_000
TWO = "hosts:\n  a: {address: 10.0.0.1}\n  b: {address: 10.0.0.2}\n"


def sync(body: str, hosts: str = TWO) -> str:
    return f"cluster: c\n{hosts}sync_routing:\n  min_copies: 1\n{body}"


def kinds(body: str, hosts: str = TWO) -> str:
    return f"cluster: c\n{hosts}sync_routing: {{min_copies: 1}}\nkinds:\n{body}"


def host(body: str) -> str:
    return f"cluster: c\nhosts:\n  a: {{{body}}}\n"


def errors(text: str | bytes) -> list[str]:
    return [problem.sentence("f") for problem in inspect_fleet(text).errors]


def warnings(text: str) -> list[str]:
    found = inspect_fleet(text)
    assert found.fleet is not None, found.report()
    return [problem.sentence("f") for problem in found.warnings]


def test_a_cluster_and_a_host_are_enough() -> None:
    assert parse_fleet("cluster: c\nhosts:\n  a:\n") == Fleet("c", hosts={"a": Host("a")})


def test_the_example_of_the_repository_loads_without_a_warning() -> None:
    found = inspect_file(TOP / "distributed_hosts.yaml")
    assert found.warnings == ()
    assert found.fleet is not None
    fleet = found.fleet
    assert fleet.host("coordinator").excluded
    assert fleet.host("vast-3090-1").ephemeral
    assert fleet.nfs_members("gh200-b") == ("gh200-a", "gh200-b")
    assert fleet.domain("gh200-a") == "lambda/us-east-3"
    assert fleet.routing_for("nebius-h100-1").max_concurrent_syncs == 8
    assert fleet.egress_bytes_per_second("nebius-h100-1") == 100 * MB
    assert fleet.host("nebius-h100-1").ssh == Ssh(user="ubuntu")
    assert fleet.routing_for("home-sp-1").disk_cap_percent == 50
    assert fleet.routing.allowed_external_storage == (
        ExternalStorage("backup.example.com", "/backups/fleet", "0 */6 * * *"),
    )
    model = fleet.kind("model")
    assert model is not None
    assert (model.roles, model.strategy, model.versions) == (("training", "selfplay"), "broadcast", 3)


def test_the_starter_file_is_usable_and_means_the_defaults() -> None:
    found = inspect_fleet(starter_hosts_file("my-fleet", "gpu-1", "10.0.0.5"))
    assert found.fleet == Fleet("my-fleet", hosts={"gpu-1": Host("gpu-1", "10.0.0.5:7946", issuer=True)})
    assert found.warnings == ()


def test_every_commented_setting_of_the_starter_file_can_be_uncommented() -> None:
    starter = starter_hosts_file("my-fleet", "gpu-1", "10.0.0.5")
    lines = [index for index, line in enumerate(starter.splitlines()) if re.match(r"\s+# [a-z_]+: \S", line)]
    assert len(lines) > 30
    for index in lines:
        changed = starter.splitlines()
        changed[index] = changed[index].replace("# ", "", 1)
        unknown = [line for line in errors("\n".join(changed)) if "is no listed host" not in line]
        assert unknown == [], changed[index]


@pytest.mark.parametrize("name", ["no", "null", "7", "1e3", "0x1f", "2024-01-01", "true"])
def test_names_that_other_yaml_readers_misread_stay_names(name: str) -> None:
    assert list(parse_fleet(starter_hosts_file(name, name, "10.0.0.5")).hosts) == [name]
    assert parse_fleet(f"cluster: c\nhosts:\n  {name}: {{region: 010}}\n").host(name).region == "010"


def test_a_starter_file_is_refused_for_names_that_could_not_be_read_back() -> None:
    with pytest.raises(ConfigError) as caught:
        starter_hosts_file("My Fleet", "../x", "10.0.0.5:99999")
    assert [problem.path for problem in caught.value.problems] == ["cluster", "node", "address"]


def test_all_mistakes_are_told_at_once_with_their_lines() -> None:
    text = (
        "clustr: c\nsync_routing:\n  min_copys: 3\n  min_free_bytes: 5 Gb\nhosts:\n"
        "  a: {adress: 10.0.0.1}\n  b: {address: 10.0.0.1, role: [x]}\n  a: {}\n"
    )
    assert errors(text) == [
        "f:1: cluster is missing. Add a line such as cluster: my-fleet.",
        "f:1: clustr: this key is unknown. Did you mean cluster?",
        "f:3: sync_routing.min_copys: this key is unknown. Did you mean min_copies?",
        "f:4: sync_routing.min_free_bytes: 'Gb' is not a unit known here. Did you mean GB?",
        "f:6: hosts.a.adress: this key is unknown. Did you mean address?",
        "f:7: hosts.b.role: a list stands where one value belongs. Write a single value.",
        "f:8: hosts.a: the host 'a' stands here twice. The first is on line 6; remove or rename one.",
    ]


def test_the_error_carries_every_problem_with_line_path_and_value() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_fleet("cluster: c\nhosts:\n  a: {role: Worker}\n", "x.yaml")
    [problem] = caught.value.problems
    assert (problem.line, problem.path, problem.value) == (3, "hosts.a.role", "'Worker'")
    assert str(caught.value) == "x.yaml:3: hosts.a.role: 'Worker' is not a role. Write worker."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "it is empty"),
        ("# only a comment\n", "it is empty"),
        ("- a\n", "it is no list of settings"),
        ("just words", "it is no list of settings"),
        ("cluster: c\n", "hosts lists no host"),
        ("cluster: c\nhosts: {}\n", "hosts lists no host"),
        ("cluster: c\nhosts: [a]\n", "named entries belong here"),
        ("cluster:\nhosts: {a: }\n", "cluster: the value is missing"),
        ("cluster: c\nhosts: {a: 5}\n", "hosts.a: a section of `key: value` lines belongs here"),
        ("cluster: c\ncluster: d\nhosts: {a: }\n", "the key 'cluster' stands here twice"),
        ("cluster: c\nhosts: {a: }\n---\ncluster: d\n", "this is not YAML"),
        ("cluster: c\n\thosts: {}\n", "this is not YAML"),
        ("cluster: [\n", "this is not YAML"),
        ("cluster: &x c\nhosts: {a: {role: *x}}\n", "aliases (*name) are not allowed"),
        ("cluster: !!python/name:os.system c\nhosts: {a: }\n", "is not allowed"),
        ("cluster: c\nhosts: !!set {a}\n", "is not allowed"),
        ("cluster: c\nhosts: {? [a] : {}}\n", "a key must be a single word"),
        ("cluster: c\nhosts: {<<: {a: {}}}\n", "'<<' is not a node id"),
        ('cluster: "\\U99999999"\n', "this is not YAML"),
        ('cluster: "\\uD800"\nhosts: {a: }\n', "is not a cluster name"),
        ("cluster: \x07\n", "character #x07 is not allowed"),
        ("cluster: c\ud800\n", "it is not UTF-8 text"),
        ("a: " + "[" * 50_000, "it is nested too deeply"),
        ("#" + "x" * (1 << 20), "it is larger than 1,048,576 bytes"),
        (b"\xff\xfecluster", "it is not UTF-8 text"),
        (b"cluster: c\0", "character #x00 is not allowed"),
    ],
)
def test_a_file_of_the_wrong_shape_is_refused(text: str | bytes, expected: str) -> None:
    assert any(expected in line for line in errors(text)), errors(text)


def test_a_byte_order_mark_is_nobodys_fault() -> None:
    assert parse_fleet(b"\xef\xbb\xbfcluster: c\nhosts: {a: }\n").cluster == "c"


def test_a_flood_of_mistakes_is_cut() -> None:
    text = "cluster: c\nhosts: {a: {" + ", ".join(f"k{index}: 1" for index in range(3000)) + "}}\n"
    assert len(inspect_fleet(text).errors) == PROBLEMS_MAX


@pytest.mark.parametrize(
    ("text", "seconds"), [("60", 60), ("90s", 90), ("5m", 300), ("1.5 h", 5400), ("250ms", 0.25), ('"1d"', 86400)]
)
def test_durations_are_seconds_or_carry_a_unit(text: str, seconds: float) -> None:
    assert parse_fleet(sync(f"  gossip_interval_seconds: {text}\n")).routing.gossip_interval_seconds == seconds


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("0", 0), ("4096", 4096), ("64 MiB", 64 * MIB), ("1GiB", GIB), ("2 GB", 2 * 10**9)]
)
def test_sizes_are_bytes_or_carry_a_unit(text: str, size_bytes: int) -> None:
    fleet = parse_fleet(sync(f"  min_free_bytes: {text}\n  copy_max: {text}\n"))
    assert (fleet.routing.min_free_bytes, fleet.routing.copy_max_bytes) == (size_bytes, size_bytes)


@pytest.mark.parametrize(
    ("line", "bytes_per_second"),
    [
        ("bandwidth_limit_mbps: 50", 50 * MB),
        ("bandwidth_limit_mbps: 0.5", MB // 2),
        ("bandwidth_limit_mbps: none", None),
        ("bandwidth_limit: 400 Mbit/s", 50 * MB),
        ("bandwidth_limit: 1Gbit/s", 125 * MB),
        ("bandwidth_limit: 10 MiB/s", 10 * MIB),
        ("bandwidth_limit: none", None),
    ],
)
def test_mbps_means_megabytes_and_other_rates_say_their_unit(line: str, bytes_per_second: int | None) -> None:
    assert parse_fleet(sync(f"  {line}\n")).egress_bytes_per_second("a") == bytes_per_second
    own = parse_fleet(host(f"{line}, provider: lambda"))
    assert own.host("a").bandwidth_limit == Bandwidth(bytes_per_second)
    assert own.egress_bytes_per_second("a") == bytes_per_second


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gossip_interval_seconds: 5min", "'min' is not a unit known here"),
        ("gossip_interval_seconds: -5", "'-5' is not a number with a unit"),
        ("gossip_interval_seconds: .inf", "is not a number with a unit"),
        ("gossip_interval_seconds: 1e3", "'1e3' is not a number with a unit"),
        ("gossip_interval_seconds: 0", "'0' is out of range. Use 0.1 to 86400 seconds."),
        ("gossip_interval_seconds:", "the value is missing"),
        ("min_free_bytes: 1 gib", "Did you mean GiB?"),
        ("min_free_bytes: 400 Mbit/s", "is not a unit"),
        ("wal_bytes_max: 1", "is out of range"),
        ("max_disk_usage_percent: 0", "is out of range"),
        ("max_disk_usage_percent: 100", "is out of range"),
        ("max_concurrent_syncs: 1.5", "is not a whole number"),
        ("max_concurrent_syncs: 65", "Use 1 to 64."),
        ("max_concurrent_syncs: 9999999999999999999999", "is not a whole number"),
        ("bandwidth_limit: 400", "the unit is missing. Write it like 400 Mbit/s, 50 MB/s or none."),
        ("bandwidth_limit: 50 mbit/s", "Did you mean Mbit/s?"),
        ("bandwidth_limit_mbps: 0", "is not a rate in megabytes per second"),
        ("bandwidth_limit_mbps: 400 Mbit/s", "is not a rate in megabytes per second"),
        ("exclude_from_sync: mac", "'mac' stands where a list belongs. Write exclude_from_sync: [first, second]."),
        ("exclude_from_sync: [A B]", "is not a pattern of node ids"),
        ("nfs_sharing_groups: [a, b]", "stands where a list belongs"),
        ("allowed_external_storage: [{hst: x, path: /y}]", "Did you mean host?"),
        ("allowed_external_storage: [{host: x, path: /../y}]", "is not a usable path"),
        ("allowed_external_storage: [x]", "a section of `key: value` lines belongs here"),
        ("hosts: {}", "this key is unknown"),
        ("versions: 3", "It stands under kinds."),
    ],
)
def test_a_bad_setting_is_told_with_what_to_write(line: str, expected: str) -> None:
    found = errors(sync(f"  {line}\n"))
    assert any(expected in sentence for sentence in found), found
    assert all(sentence.startswith("f:7: sync_routing.") for sentence in found)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.5", "10.0.0.5:7946"),
        ("10.0.0.5:80", "10.0.0.5:80"),
        ("GPU.Example.com:7000", "gpu.example.com:7000"),
        ('"[2001:DB8::1]:80"', "[2001:db8::1]:80"),
        ('"[::1]"', "[::1]:7946"),
    ],
)
def test_addresses_have_one_form(text: str, canonical: str) -> None:
    assert parse_fleet(host(f"address: {text}")).host("a").address == canonical


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ('address: "::1"', "Write [::1]:7946."),
        ("address: 10.0.0.5:0", "has no such port"),
        ("address: 10.0.0.5:65536", "has no such port"),
        ("address: 10.0.0.999", "names no host"),
        ("address: 0.0.0.0:1", "can be bound but not dialled"),
        ("address: https://x", "is not an address"),
        ("address: -x:1", "names no host"),
        ("provider: Nebius", "'Nebius' is not a name. Write nebius."),
        ("issuer: maybe", "is neither true nor false"),
        ("sync_priority: urgent", "Use low, normal, high, critical."),
        ("sync_priority: hihg", "Did you mean high?"),
        ("root: ../x", "is not a usable path"),
        ("ssh: {usr: root}", "hosts.a.ssh.usr: this key is unknown. Did you mean user?"),
        ("ssh: root", "a section of `key: value` lines belongs here"),
        ("ssh: {port: 0}", "Use 1 to 65535."),
        ("exclude_from_sync: true", "Write excluded: true in the host's entry."),
        ("ephemeral_hosts: true", "Write ephemeral: true in the host's entry."),
        ("cluster: c", "It stands under the top level."),
        ("bandwidth_limit: none, bandwidth_limit_mbps: 3", "Keep one of the two."),
        ("issuer: true, ephemeral: true", "an ephemeral host cannot be an issuer"),
    ],
)
def test_a_bad_host_entry_is_told_with_what_to_write(entry: str, expected: str) -> None:
    assert any(expected in line for line in errors(host(entry))), errors(host(entry))


@pytest.mark.parametrize("name", ["A", "-a", "a-", "a b", "a/b", "..", "a" * 64, "ä", '"a\\nb"', '""'])
def test_bad_node_ids_are_refused(name: str) -> None:
    assert any("is not a node id" in line for line in errors(f"cluster: c\nhosts:\n  {name}: {{}}\n"))


def test_an_unprintable_value_cannot_move_the_terminal() -> None:
    for line in errors('cluster: "\\e[2J\\r"\nhosts: {"\\e[2J": {}}\n'):
        assert line.isprintable()


def test_whatever_stands_under_sync_routing_can_stand_in_a_hosts_entry() -> None:
    own = parse_fleet(host("min_copies: 3, copy_max: 1 MiB, flush_seconds: 2m, max_disk_usage_percent: 50%"))
    routing = own.routing_for("a")
    assert (routing.min_copies, routing.copy_max_bytes, routing.flush_seconds) == (3, MIB, 120)
    assert routing.disk_cap_percent == 50
    assert own.routing == Routing()


def test_a_section_whose_lines_are_all_comments_is_an_empty_one() -> None:
    assert parse_fleet("cluster: c\nsync_routing:\n  # x: 1\nkinds:\nhosts: {a: }\n").routing == Routing()


def test_patterns_mark_hosts_and_an_entry_overrides_a_pattern() -> None:
    hosts = "hosts: {dev-1: , dev-2: {excluded: false}, vast-1: {ephemeral: false}, vast-2: , a: , b: , c: }\n"
    fleet = parse_fleet(sync("  exclude_from_sync: [dev-*]\n  ephemeral_hosts: [vast-*]\n", hosts))
    assert [name for name, entry in fleet.hosts.items() if entry.excluded] == ["dev-1"]
    assert [name for name, entry in fleet.hosts.items() if entry.ephemeral] == ["vast-2"]
    assert fleet.unlisted("dev-9").excluded


def test_a_host_named_in_a_list_and_denied_in_its_entry_is_a_contradiction() -> None:
    text = sync("  exclude_from_sync: [a]\n", "hosts: {a: {excluded: false}, b: , c: }\n")
    assert any("excluded: false contradicts sync_routing" in line for line in errors(text))


def test_a_pattern_without_a_match_is_only_a_warning() -> None:
    found = warnings(sync("  exclude_from_sync: [dev-*, aa]\n"))
    assert found == [
        "f:7: sync_routing.exclude_from_sync.0: dev-* matches no listed host. "
        "It will apply to hosts that join under such a name.",
        "f:7: sync_routing.exclude_from_sync.1: aa matches no listed host. Did you mean a?",
    ]


THREE = "hosts: {a: {provider: x}, b: {provider: x}, v: {provider: x, ephemeral: true}, w: {provider: y}}\n"


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("[[a, zz]]", "zz is no listed host"),
        ("[[a]]", "one host shares with nobody"),
        ("[[]]", "one host shares with nobody"),
        ("[[a, a]]", "a stands in two groups or twice in one"),
        ("[[a, b], [b, w]]", "b stands in two groups or twice in one"),
        ("[[a, v]]", "the group mixes ephemeral and persistent hosts"),
        ("[[a, w]]", "one shared root lies in the domains x, y"),
    ],
)
def test_a_contradictory_nfs_group_is_refused(groups: str, expected: str) -> None:
    found = errors(sync(f"  nfs_sharing_groups: {groups}\n", THREE))
    assert any(expected in line for line in found), found


def test_a_domain_stated_by_one_member_holds_for_its_group() -> None:
    hosts = "hosts: {a: {provider: x, domain: hall}, b: {provider: y}, c: {provider: z}}\n"
    fleet = parse_fleet(sync("  nfs_sharing_groups: [[b, a]]\n", hosts))
    assert (fleet.domain("a"), fleet.domain("b"), fleet.domain("c")) == ("hall", "hall", "z")


def test_a_group_that_shares_with_an_excluded_host_is_warned_about() -> None:
    text = sync("  nfs_sharing_groups: [[a, b]]\n  exclude_from_sync: [b]\n", THREE)
    assert any("mixes excluded hosts and others" in line for line in warnings(text))


@pytest.mark.parametrize(
    "hosts",
    [
        "a: {address: 10.0.0.1}, b: {address: 10.0.0.1:7946}",
        "a: {address: 10.0.0.1}, b: {address: 10.0.0.2, advertise: 10.0.0.1}",
        "a: {address: GPU}, b: {address: gpu}",
    ],
)
def test_two_hosts_at_one_address_are_refused(hosts: str) -> None:
    assert any("belongs to two hosts. Correct one of them; a has it too." in line for line in errors(
        f"cluster: c\nhosts: {{{hosts}}}\n"
    ))  # fmt: skip


def test_one_machine_may_serve_several_ports_and_an_advertised_address_frees_the_other() -> None:
    hosts = "hosts: {a: {address: 10.0.0.1:1}, b: {address: 10.0.0.1:2}, c: {address: 10.0.0.1:1, advertise: x:3}}\n"
    assert warnings(sync("", hosts)) == []


def test_a_loopback_address_among_others_is_warned_about() -> None:
    assert warnings(sync("", "hosts: {a: {address: 127.0.0.1:1}, b: {address: 127.0.0.1:2}}\n")) == []
    found = warnings(sync("", "hosts: {a: {address: localhost}, b: {address: 10.0.0.2}}\n"))
    assert any("cannot dial a loopback address" in line for line in found)


def test_disk_bounds_that_contradict_each_other_are_settled_aloud() -> None:
    text = sync("  max_disk_usage_percent: 90\n  min_free_disk_percent: 30\n")
    assert any("The stricter wins: 70 percent used at most." in line for line in warnings(text))
    assert parse_fleet(text).routing.disk_cap_percent == 70


def test_one_disk_bound_carries_the_other() -> None:
    assert parse_fleet(sync("  max_disk_usage_percent: 90\n")).routing.disk_cap_percent == 90
    assert parse_fleet(sync("  min_free_disk_percent: 5\n")).routing.disk_cap_percent == 95


def test_more_copies_than_stores_are_warned_about() -> None:
    text = f"cluster: c\n{TWO}sync_routing: {{min_copies: 2}}\n"
    assert any("2 copies besides the origin's want more than 2 stores" in line for line in warnings(text))


def test_a_default_kind_changes_only_what_is_stated_and_others_stay() -> None:
    fleet = parse_fleet(kinds("  extra: {paths: [x/*]}\n  model: {versions: 9}\n"))
    assert [kind.name for kind in fleet.kinds] == ["extra", "model", "game", "npz", "checkpoint"]
    model = fleet.kind("model")
    assert model is not None
    assert (model.versions, model.strategy, model.paths) == (9, "broadcast", ("models/*.pth",))


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("Game: {}", "'Game' is not a name for a kind. Write game."),
        ("1x: {}", "is not a name for a kind"),
        ("spore: {}", "the kind spore is reserved"),
        ("x: {paths: [/abs]}", "is absolute"),
        ("x: {paths: [../up]}", "has an empty part, '.' or '..'"),
        ("x: {paths: [a//b]}", "has an empty part"),
        ('x: {paths: [""]}', "has an empty part"),
        ("x: {paths: [a**/b]}", "has ** beside other characters"),
        ("x: {paths: [.spore/x]}", "lies in a folder that is ours"),
        ("x: {paths: [peers/**]}", "lies in a folder that is ours"),
        ("x: {paths: ['a\\b']}", "is not a pattern of files"),
        ("x: {paths: games/*}", "stands where a list belongs"),
        ("x: {namespace: global}", "Use cluster, node."),
        ("x: {strategy: pul}", "Did you mean pull?"),
        ("x: {scope: peers}", "reserved and would not be kept"),
        ("x: {versions: 0}", "is out of range"),
        ("x: {snapshot: mysql}", "is not a choice here"),
        ("x: {min_free_bytes: 1}", "It stands under sync_routing."),
        ("x: {paths: ['games/**/*.db']}", "the kinds x and game both claim games/**/*.db"),
        ("x: 5", "a section of `key: value` lines belongs here"),
    ],
)
def test_a_bad_kind_is_told_with_what_to_write(entry: str, expected: str) -> None:
    found = errors(kinds(f"  {entry}\n"))
    assert any(expected in line for line in found), found


def test_too_many_kinds_are_refused() -> None:
    body = "".join(f"  k{index}: {{}}\n" for index in range(65))
    assert any("more than 64 kinds" in line for line in errors(kinds(body)))


def test_a_role_that_only_excluded_hosts_have_is_an_error() -> None:
    hosts = "hosts: {a: {role: training, excluded: true}, b: , c: }\n"
    found = errors(kinds("  npz: {roles: [training]}\n", hosts))
    assert found == [
        "f:5: kinds.npz.roles.0: every host of the role training is excluded from sync: a. "
        "Remove it from exclude_from_sync, or the role from the kind."
    ]


def test_an_excluded_coordinator_is_normal() -> None:
    hosts = "hosts: {a: {role: coordinator, excluded: true}, b: {role: training}, c: {role: training}}\n"
    assert warnings(kinds("  npz: {roles: [training]}\n", hosts)) == []


def test_a_role_that_no_host_has_is_warned_about_with_the_closest() -> None:
    hosts = "hosts: {a: {role: training}, b: {role: training}}\n"
    found = warnings(kinds("  npz: {roles: [trainning]}\n", hosts))
    assert any("no listed host has the role trainning. Did you mean training?" in line for line in found)


def test_roles_of_a_pulled_kind_are_warned_about() -> None:
    assert any("roles have no effect" in line for line in warnings(kinds("  x: {strategy: pull, roles: [worker]}\n")))


def test_the_hash_covers_the_meaning_and_not_the_wording() -> None:
    first = parse_fleet("cluster: c\nsync_routing: {gossip_interval_seconds: 60}\nhosts: {a: , b: }\n")
    second = parse_fleet(
        "# a comment\nhosts:\n  b: {}\n  a: {role: worker}\ncluster: 'c'\nsync_routing: {gossip_interval_seconds: 1m}\n"
    )
    third = parse_fleet("cluster: c\nsync_routing: {gossip_interval_seconds: 61}\nhosts: {a: , b: }\n")
    assert first.hash == second.hash
    assert first.hash != third.hash


def test_the_hash_is_the_same_in_every_process() -> None:
    code = f"from node.config import load_fleet; print(load_fleet({str(TOP)!r}).hash)"
    seeds = ("0", "1", "12345")
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, cwd=TOP, capture_output=True,
            text=True, check=True,
        ).stdout
        for seed in seeds
    ]  # fmt: skip
    assert len(set(runs)) == 1


def test_a_nodes_folder_stands_for_its_hosts_file(tmp_path: Path) -> None:
    (tmp_path / "distributed_hosts.yaml").write_text("cluster: c\nhosts: {a: }\n")
    assert load_fleet(tmp_path).cluster == "c"
    assert check_report(tmp_path).endswith(
        f"usable. Cluster c, 1 host, 4 kinds, hash {load_fleet(tmp_path).hash[:12]}."
    )


def test_a_report_lists_findings_then_the_verdict(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("cluster: C\nhosts: {a: }\nsync_routing: {exclude_from_sync: [zz]}\n")
    lines = check_report(path).splitlines()
    assert lines[0] == f"error: {path}:1: cluster: 'C' is not a cluster name. Write c."
    assert lines[1].startswith(f"warning: {path}:3: sync_routing.exclude_from_sync.0: ")
    assert lines[2] == f"{path}: 1 error; not usable."


def test_a_file_that_cannot_be_read_is_a_sentence_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it cannot be read: No such file or directory"):
        load_fleet(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="it cannot be read"):
        load_fleet("a\0b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="it is no regular file"):
        load_fleet(tmp_path / "pipe")


def test_the_environment_overrides_the_file() -> None:
    env = {
        "SPORE_SYNC_INTERVAL": "5", "SPORE_GOSSIP_INTERVAL": "2s", "SPORE_SYNC_MAX_CONCURRENT": "8",
        "SPORE_SYNC_BANDWIDTH_MBPS": "12.5", "SPORE_SYNC_MAX_DISK_USAGE": "85", "SPORE_FLUSH_SECONDS": " 20 ",
    }  # fmt: skip
    assert set(env) == set(ENVIRONMENT)
    changed = apply_environment(Routing(), {**env, "UNRELATED": "x"})
    assert (changed.auto_sync_interval_seconds, changed.gossip_interval_seconds) == (5, 2)
    assert (changed.max_concurrent_syncs, changed.flush_seconds) == (8, 20)
    assert (changed.bandwidth_limit, changed.disk_cap_percent) == (Bandwidth(12_500_000), 85)


def test_an_empty_variable_is_an_unset_one() -> None:
    assert apply_environment(Routing(), {"SPORE_FLUSH_SECONDS": " "}) == Routing()


def test_every_bad_variable_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        apply_environment(Routing(), dict.fromkeys(ENVIRONMENT, "x"))
    assert sorted(problem.path for problem in caught.value.problems) == sorted(ENVIRONMENT)
    assert str(caught.value).startswith("environment: SPORE_")


def test_configuration_needs_no_heavy_package() -> None:
    code = (
        "import sys; import node.config; "
        "heavy = {'aiohttp', 'cryptography', 'msgpack', 'numpy', 'psutil', 'rich', 'click', 'blake3'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def only_config_errors(text: str | bytes) -> None:
    """Read the text; anything raised but ConfigError fails the test, and so does an error without a sentence."""
    problems: tuple[Problem, ...] = ()
    try:
        parse_fleet(text)
    except ConfigError as error:
        problems = error.problems
        spoken = str(error)
    else:
        spoken = "usable"
    assert all(problem.message for problem in problems)
    assert bool(problems) == (spoken != "usable")
    assert spoken.replace("\n", "").isprintable()


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.binary()))
def test_arbitrary_input_raises_nothing_but_a_configuration_error(text: str | bytes) -> None:
    only_config_errors(text)


YAML_BITS = st.sampled_from(
    ["cluster: ", "hosts:", "\n", "  ", "kinds:", "sync_routing:", "a", "b: ", "{", "}", "[", "]", ", ", ": ", "- ",
     "'", '"', "\\x", "\\U", "#", "|", ">", "&x ", "*x", "!!", "!", "%", "---", "...", "? ", "<<", "~", "null", "1e9",
     "paths", "roles: ", "ssh: ", "address: ", "\t", "\0", "\ud800", "\u2028", "\x85", "@", "`", ".spore/", "**"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(YAML_BITS, max_size=30))
def test_shuffled_pieces_of_yaml_raise_nothing_but_a_configuration_error(bits: list[str]) -> None:
    only_config_errors("".join(bits))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_example_raises_nothing_but_a_configuration_error(data: st.DataObject) -> None:
    text = (TOP / "distributed_hosts.yaml").read_text()[-1800:]
    text = "cluster: c\nhosts:\n" + text[text.index("  nebius") :]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        text = (
            text[:at] + data.draw(st.one_of(YAML_BITS, st.text(max_size=3))) + text[at + data.draw(st.integers(0, 9)) :]
        )
    only_config_errors(text)


def test_budgets_towards_providers_and_peers_keep_their_order_and_can_be_overridden() -> None:
    text = """
cluster: c
sync_routing:
  provider_limits: {vast: 50 MB/s}
  peer_limits: {runpod-1: none, runpod-*: 80 Mbit/s}
hosts:
  a: {}
  b: {peer_limits: {"*": 1 MB/s}}
"""
    fleet = parse_fleet(text)
    assert fleet.routing_for("a").provider_limits == (("vast", Bandwidth(50 * MB)),)
    assert fleet.routing_for("a").peer_limits == (("runpod-1", Bandwidth(None)), ("runpod-*", Bandwidth(10 * MB)))
    assert fleet.routing_for("b").peer_limits == (("*", Bandwidth(MB)),)


LEAVES = st.one_of(st.none(), st.text(max_size=8), st.sampled_from(["a", "b", "none", "5", "1 GiB", "true", "[x"]))
KEYS = st.sampled_from(
    ["cluster", "hosts", "kinds", "sync_routing", "a", "b", "model", "paths", "roles", "address", "ssh", "user",
     "domain", "min_copies", "nfs_sharing_groups", "exclude_from_sync", "allowed_external_storage", "bandwidth_limit",
     "issuer"]
)  # fmt: skip
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["cluster", "hosts", "kinds", "sync_routing"]), TREES))
def test_any_tree_of_settings_raises_nothing_but_a_configuration_error(tree: dict[str, object]) -> None:
    import json

    only_config_errors(json.dumps(tree))


def test_kinds_that_a_host_does_not_receive_are_checked() -> None:
    hosts = "hosts: {a: {receive: {game: false}}, b: {receive: {gmae: false}}, c: }\n"
    assert any("there is no such kind" in line and "game" in line for line in errors("cluster: x\n" + hosts))
    nobody = "hosts: {a: {receive: {game: false}}, b: {receive: {game: false}}}\n"
    assert any("no host receives the kind game" in line for line in errors("cluster: x\n" + nobody))
    fleet = parse_fleet("cluster: x\nhosts: {a: {receive: {game: false}}, b: }\n")
    assert [fleet.receives(node, "game") for node in ("a", "b", "stranger")] == [False, True, True]
