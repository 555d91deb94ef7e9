"""The fleet and its policies: what each node's limits, domain and kinds are, from values alone."""

from dataclasses import replace

import pytest

from protocol.fleet import (
    GIB,
    MIB,
    Bandwidth,
    Fleet,
    Host,
    Kind,
    Routing,
    path_matches,
    split_address,
)

MB = 1_000_000


def fleet(*hosts: Host, **settings: object) -> Fleet:
    return Fleet("test", hosts={host.name: host for host in hosts}, **settings)  # type: ignore[arg-type]


def test_the_defaults_are_those_of_the_design() -> None:
    routing = Routing()
    assert (routing.auto_sync_interval_seconds, routing.gossip_interval_seconds) == (60, 30)
    assert (routing.max_concurrent_syncs, routing.min_copies, Fleet("test").flush_seconds("a")) == (4, 2, 8)
    assert (routing.disk_cap_percent, routing.min_free_bytes) == (70, GIB)
    assert (routing.copy_max_bytes, routing.wal_bytes_max) == (64 * MIB, GIB)
    assert [kind.name for kind in Fleet("test").kinds] == ["game", "model", "npz", "checkpoint"]
    assert not any(kind.roles for kind in Fleet("test").kinds)
    assert [kind.strategy for kind in Fleet("test").kinds] == ["hybrid", "broadcast", "hybrid", "hybrid"]
    assert [kind.namespace for kind in Fleet("test").kinds] == ["node", "cluster", "cluster", "cluster"]


@pytest.mark.parametrize(
    ("provider", "megabytes"),
    [
        ("lambda", 100), ("runpod", 100), ("tailscale", 100), ("hetzner", 80), ("vultr", 80),
        ("nebius", 50), ("vast", 50), ("unheard-of", 20), (None, 20),
    ],
)  # fmt: skip
def test_each_provider_has_its_egress_figure(provider: str | None, megabytes: int) -> None:
    assert fleet(Host("a", provider=provider)).egress_bytes_per_second("a") == megabytes * MB


def test_a_local_host_is_not_limited() -> None:
    assert fleet(Host("a", provider="local")).egress_bytes_per_second("a") is None


def test_egress_is_environment_then_host_then_provider_then_fleet() -> None:
    routing = Routing(bandwidth_limit=Bandwidth.megabytes(7))
    own = Host("own", provider="nebius", bandwidth_limit=Bandwidth.megabytes(3))
    everyone = fleet(own, Host("known", provider="nebius"), Host("plain"), routing=routing)
    assert everyone.egress_bytes_per_second("own", {"SPORE_SYNC_BANDWIDTH_MBPS": "1.5"}) == 1.5 * MB
    assert everyone.egress_bytes_per_second("own", {"SPORE_SYNC_BANDWIDTH_MBPS": "none"}) is None
    assert everyone.egress_bytes_per_second("own", {"SPORE_SYNC_BANDWIDTH_MBPS": ""}) == 3 * MB
    assert everyone.egress_bytes_per_second("own") == 3 * MB
    assert everyone.egress_bytes_per_second("known") == 50 * MB
    assert everyone.egress_bytes_per_second("plain") == 7 * MB
    assert everyone.routing_for("own").bandwidth_limit == Bandwidth(3 * MB)


@pytest.mark.parametrize("text", ["fast", "-1", "0", "nan", "inf", "1e400", "50 MB"])
def test_a_rate_that_is_none_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="is not a rate: write megabytes per second"):
        fleet(Host("a")).egress_bytes_per_second("a", {"SPORE_SYNC_BANDWIDTH_MBPS": text})


def test_a_hosts_own_statement_outranks_the_fleets() -> None:
    host = Host("a", overrides={"min_copies": 3, "gossip_interval_seconds": 5.0})
    both = fleet(host, Host("b"), routing=Routing(min_copies=1))
    assert (both.routing_for("a").min_copies, both.routing_for("b").min_copies) == (3, 1)
    assert both.routing_for("a").gossip_interval_seconds == 5
    assert both.min_copies(Kind("x"), "a") == 3
    assert both.min_copies(Kind("x", min_copies=4), "a") == 4


def test_a_kind_may_state_its_own_copy_bound_even_none_at_all() -> None:
    assert fleet(Host("a")).copy_max_bytes(Kind("x"), "a") == 64 * MIB
    assert fleet(Host("a")).copy_max_bytes(Kind("x", copy_max_bytes=0), "a") == 0


def test_an_ephemeral_host_looks_every_five_seconds_unless_it_says_otherwise() -> None:
    stated = Host("b", ephemeral=True, overrides={"auto_sync_interval_seconds": 20.0})
    both = fleet(Host("a", ephemeral=True), stated)
    assert both.routing_for("a").auto_sync_interval_seconds == 5
    assert both.routing_for("b").auto_sync_interval_seconds == 20


def test_the_stricter_disk_bound_wins() -> None:
    assert Routing(max_disk_usage_percent=90, min_free_disk_percent=30).disk_cap_percent == 70
    assert Routing(max_disk_usage_percent=60, min_free_disk_percent=30).disk_cap_percent == 60


def test_a_domain_is_stated_or_provider_and_region() -> None:
    hosts = fleet(
        Host("a", provider="nebius", region="eu"), Host("b", provider="nebius"), Host("c"), Host("d", domain="rack-7")
    )
    assert [hosts.domain(name) for name in "abcd"] == ["nebius/eu", "nebius", "unspecified", "rack-7"]


def test_an_nfs_group_lies_within_one_domain() -> None:
    shared = fleet(Host("a", provider="lambda", nfs_group="a"), Host("b", domain="hall-2", nfs_group="a"), Host("c"))
    assert shared.domain("a") == shared.domain("b") == "hall-2"
    assert shared.nfs_members("b") == ("a", "b")
    assert shared.nfs_members("c") == ()


def test_an_unlisted_node_is_ephemeral_and_obeys_the_patterns() -> None:
    known = fleet(Host("a"), exclude_from_sync=("dev-*",))
    assert known.host("spot-9").ephemeral
    assert not known.host("spot-9").listed
    assert not known.host("spot-9").excluded
    assert known.host("dev-3").excluded


def test_a_joined_node_is_known_and_leaves_the_hash_alone() -> None:
    before = fleet(Host("a"))
    after = before.with_joined(before.unlisted("spot-1", address="10.0.0.9:7946", provider="vast", region="de"))
    assert after.domain("spot-1") == "vast/de"
    assert after.host("spot-1").dial_address == "10.0.0.9:7946"
    assert after.hash == before.hash


def test_the_hash_changes_with_any_policy_and_with_nothing_else() -> None:
    base = fleet(Host("a"), Host("b"))
    assert base.hash == fleet(Host("b"), Host("a")).hash
    assert len(base.hash) == 64
    changed = [
        replace(base, cluster="other"),
        replace(base, routing=Routing(min_copies=3)),
        replace(base, kinds=()),
        fleet(Host("a"), Host("b", role="training")),
        fleet(Host("a"), Host("b", overrides={"min_copies": 3})),
    ]
    assert len({each.hash for each in [base, *changed]}) == 6


def test_addresses_tell_what_to_dial_and_what_to_bind() -> None:
    mapped = Host("a", address="10.0.0.5:7946", advertise="203.0.113.7:40001")
    assert (mapped.dial_address, mapped.listen_address) == ("203.0.113.7:40001", "0.0.0.0:7946")
    assert Host("b", address="10.0.0.5:9000").listen_address == "0.0.0.0:9000"
    assert Host("c", listen="127.0.0.1:1").listen_address == "127.0.0.1:1"
    assert (Host("d").dial_address, Host("d").listen_address) == (None, "0.0.0.0:7946")
    assert split_address("[::1]:7946") == ("::1", 7946)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("games/**/*.db", "games/a.db", True),
        ("games/**/*.db", "games/x/y/a.db", True),
        ("games/**/*.db", "games/a.db-wal", False),
        ("games/**/*.db", "other/games/a.db", False),
        ("models/*.pth", "models/x/a.pth", False),
        ("**", "a/b/c", True),
        ("**/a", "a", True),
        ("a/**", "a/b", True),
        ("checkpoints/*", "checkpoints/e?[1]", True),
        ("x/step-[0-9].bin", "x/step-7.bin", True),
        ("x/step-[0-9].bin", "x/step-a.bin", False),
    ],
)
def test_globs_match_whole_paths(pattern: str, path: str, expected: bool) -> None:
    assert path_matches(pattern, path) is expected


def test_a_hostile_glob_is_not_slow() -> None:
    assert not path_matches("/".join(["**"] * 60) + "/x", "/".join(["a"] * 400))


def test_a_files_kind_is_the_first_that_matches_and_never_in_our_own_folders() -> None:
    own = Fleet("test", kinds=(Kind("opening", paths=("games/openings/*",)), *Fleet("x").kinds, Kind("rest", ("**",))))
    assert [kind.name for path in ("games/openings/a.db", "games/a.db", "b") if (kind := own.kind_of_path(path))] == [
        "opening",
        "game",
        "rest",
    ]
    assert own.kind_of_path(".spore/versions/a.db") is None
    assert own.kind_of_path("peers/b/games/a.db") is None


def test_a_names_kind_is_its_first_part() -> None:
    assert Fleet("test").kind_of("model/models/a.pth") == Fleet("test").kind("model")
    assert Fleet("test").kind_of("unheard/of") is None
