"""This node's own entry: the hosts file, then the machine, then the environment; what is stated stands."""

import pytest

from node.config import ConfigError, parse_fleet
from node.notices.detection import Machine
from node.own_host import on_this_machine
from protocol.fleet import Bandwidth, Fleet, Host

NOTHING = Machine()
VAST = Machine("vast", "a variable VAST_… is set", None, "a variable")
RUNPOD = Machine("runpod", "RUNPOD_POD_ID is set", 4.0, "RUNPOD_POD_ID is set")
FLEET = parse_fleet(
    "cluster: x\nsync_routing: {ephemeral_hosts: [spot-*]}\n"
    "hosts: {a: {address: a}, b: {address: b, ephemeral: false, provider: gcp}, spot-1: ,\n"
    "        k: {address: k, issuer: true}}"
)


def own(node: str, machine: Machine = NOTHING, **env: str) -> Host:
    return on_this_machine(FLEET, node, env, machine).host(node)


def test_what_the_machine_says_counts_where_the_file_is_silent() -> None:
    found = own("a", VAST)
    assert (found.provider, found.ephemeral, found.ephemeral_by) == ("vast", True, VAST.ephemeral)


def test_what_an_entry_states_stands() -> None:
    found = own("b", VAST)
    assert (found.provider, found.ephemeral, found.ephemeral_by) == ("gcp", False, "its entry in the hosts file")


def test_a_pattern_and_a_token_are_named_as_reasons() -> None:
    assert own("spot-1").ephemeral_by == "ephemeral_hosts: spot-*"
    assert own("unlisted").ephemeral_by == "it joined with an ephemeral token"


def test_the_node_that_keeps_the_cluster_key_is_never_called_ephemeral() -> None:
    assert not own("k", VAST).ephemeral


def test_the_environment_says_what_only_the_machine_knows() -> None:
    found = own("unlisted", SPORE_ADVERTISE="203.0.113.7:40001", SPORE_LISTEN="0.0.0.0:8000", SPORE_PROVIDER="nebius")
    assert (found.dial_address, found.listen_address, found.provider) == ("203.0.113.7:40001", "0.0.0.0:8000", "nebius")
    told = own("a", SPORE_EPHEMERAL="true")
    assert (told.ephemeral, told.ephemeral_by) == (True, "SPORE_EPHEMERAL")


def test_a_variable_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ConfigError, match="SPORE_ADVERTISE"):
        own("a", SPORE_ADVERTISE="not an address")


@pytest.mark.parametrize(
    ("machine", "env", "seconds"),
    [(RUNPOD, {}, 4.0), (RUNPOD, {"SPORE_FLUSH_SECONDS": "3"}, 3.0), (Machine("gcp"), {}, 25.0), (Machine(), {}, 8.0)],
)
def test_the_environment_budget_goes_before_the_machines(machine: Machine, env: dict[str, str], seconds: float) -> None:
    assert on_this_machine(FLEET, "a", env, machine).flush_seconds("a") == seconds


def test_a_budget_that_the_file_states_is_not_detected_otherwise() -> None:
    stated = parse_fleet("cluster: x\nsync_routing: {flush_seconds: 20}\nhosts: {a: {address: a}}")
    assert on_this_machine(stated, "a", {}, RUNPOD).flush_seconds("a") == 20


def test_the_core_plans_with_the_limit_of_the_environment() -> None:
    assert own("a", SPORE_SYNC_BANDWIDTH_MBPS="3").bandwidth_limit == Bandwidth(3_000_000)


def test_the_hash_stays_that_of_the_file_and_reasons_are_no_part_of_it() -> None:
    assert on_this_machine(FLEET, "a", {"SPORE_PROVIDER": "x"}, VAST).hash == FLEET.hash
    plain = Fleet("x", hosts={"a": Host("a", ephemeral=True)})
    assert Fleet("x", hosts={"a": Host("a", ephemeral=True, ephemeral_by="a reason")}).hash == plain.hash
