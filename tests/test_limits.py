"""`spore limit`: what is said, what is then in force, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from node.cli.limiting import _node_and_rate
from node.door import DoorError
from node.limits import Limits
from protocol.egress import Flow
from protocol.fleet import Bandwidth, Fleet, Host, Routing


def limits_of(env: dict[str, str] | None = None) -> Limits:
    routing = Routing(provider_limits=(("vast", Bandwidth(9_000_000)),), peer_limits=(("b*", Bandwidth(1_000_000)),))
    hosts = {"a": Host("a", provider="nebius"), "b": Host("b", provider="vast", sync_priority="high")}
    agent = SimpleNamespace(fleet=Fleet("f", routing, hosts=hosts), node="a", env=env or {})
    limits = Limits(agent)  # type: ignore[arg-type]  # all that it asks of an agent
    agent.throttle = limits.throttle()
    return limits


def test_without_a_rate_it_shows_every_budget_and_who_says_so() -> None:
    assert limits_of().asked("", "") == [
        {"egress": "all of a", "bytes_per_second": 50_000_000, "by": "hosts file"},
        {"egress": "to vast together", "bytes_per_second": 9_000_000, "by": "hosts file"},
        {"egress": "to b*", "bytes_per_second": 1_000_000, "by": "hosts file"},
    ]
    assert limits_of({"SPORE_SYNC_BANDWIDTH_MBPS": "none"}).asked("", "")[0] == {
        "egress": "all of a",
        "bytes_per_second": None,
        "by": "environment",
    }


@pytest.mark.parametrize(
    ("rate", "bytes_per_second"), [("50", 50_000_000), ("400 Mbit/s", 50_000_000), ("8MB/s", 8_000_000), ("none", None)]
)
def test_a_rate_limits_the_node_until_the_default_is_asked_for(rate: str, bytes_per_second: int | None) -> None:
    limits = limits_of({"SPORE_SYNC_BANDWIDTH_MBPS": "7"})
    shown = limits.asked("", rate)
    assert shown[0] == {"egress": "all of a", "bytes_per_second": bytes_per_second, "by": "spore limit"}
    assert limits.asked("a", "default")[0] == {"egress": "all of a", "bytes_per_second": 7_000_000, "by": "environment"}


def test_a_rate_for_a_node_comes_before_the_patterns_of_the_hosts_file() -> None:
    limits = limits_of()
    limits.asked("b", "2")
    assert limits.budgets().of(Flow("b"))[-1] == ("peer b", 2_000_000)
    limits.asked("b", "default")
    assert limits.budgets().of(Flow("b"))[-1] == ("peer b", 1_000_000)


@pytest.mark.parametrize(
    ("node", "rate", "sentence"),
    [("", "fast", "fast"), ("", "0", "rate"), ("Not A Node", "5", "node name"), ("", "5 bananas", "bananas")],
)
def test_what_cannot_be_a_rate_or_a_node_is_refused_with_a_sentence(node: str, rate: str, sentence: str) -> None:
    with pytest.raises(DoorError, match=sentence) as refused:
        limits_of().asked(node, rate)
    assert (refused.value.exit_code, "\n" in str(refused.value)) == (2, False)


def test_one_word_is_a_rate_and_two_are_a_node_and_a_rate() -> None:
    assert [_node_and_rate(words) for words in ((), ("5",), ("b", "5"))] == [("", ""), ("", "5"), ("b", "5")]


def test_a_peer_has_the_provider_and_the_priority_of_its_host() -> None:
    throttle = limits_of().throttle()
    said = [throttle.pace("b", 3).keywords["flow"], throttle.pace("b", 3, "low").keywords["flow"]]  # type: ignore[attr-defined]
    assert said == [Flow("b", "vast", "high", 3), Flow("b", "vast", "low", 3)]


def test_what_a_user_wants_moved_now_has_its_priority_as_long_as_the_command_runs() -> None:
    throttle = limits_of().throttle()
    digest, other = bytes(32), bytes([1]) * 32

    def priority(*digests: bytes, stated: str = "") -> str:
        return str(throttle.pace("b", 3, stated, digests).keywords["flow"].priority)  # type: ignore[attr-defined]

    with throttle.urgent({digest: "critical"}), throttle.urgent({digest: "low"}):
        assert [priority(other, digest), priority(other), priority()] == ["low", "high", "high"]
    with throttle.urgent({digest: "critical"}):
        assert [priority(digest, stated="low"), priority(other, stated="low")] == ["critical", "low"]
    assert [priority(digest), priority(digest, stated="normal")] == ["high", "high"]
