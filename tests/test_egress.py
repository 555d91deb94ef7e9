"""The egress scheduler: no window above its budget, shares by weight, nobody starves, the critical first."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.egress import RATE_BYTES_PER_SECOND_MIN, UNLIMITED, WEIGHTS, Budgets, Egress, Flow, budgets_of
from protocol.fleet import Bandwidth, Fleet, Host, Priority, Routing

RATE = 25_000_000.0  # 200 Mbit/s
WINDOW_SECONDS = 5.0
LOW, NORMAL, HIGH, CRITICAL = (Flow("b", "", priority, 1) for priority in WEIGHTS)


@dataclass
class Sender:
    """A thread that sends: it asks for a piece, and for the next one so long after it went."""

    flow: Flow
    begins: float = 0.0
    ends: float = 1e9
    returns_seconds: float = 0.0003
    piece_bytes: int = 64 << 10


@dataclass
class Run:
    """A machine, senders, and virtual time: each event is a sender's ask or the machine's wish to be called."""

    egress: Egress
    senders: list[Sender]
    sent: list[tuple[float, Flow, int]] = field(default_factory=list)

    def until(self, end: float) -> Run:
        due = deque(sorted(((s.begins, index) for index, s in enumerate(self.senders))))
        tickets: dict[int, tuple[int, int]] = {}
        now = 0.0
        while now < end:
            wake = self.egress.wake_at(now) if tickets else None
            now = max(now, min(due[0][0] if due else end, wake if wake is not None else end))
            while due and due[0][0] <= now:
                index = due.popleft()[1]
                sender = self.senders[index]
                if now < sender.ends:
                    size = min(sender.piece_bytes, self.egress.piece_bytes(sender.flow))
                    tickets[self.egress.ask(sender.flow, size)] = (index, size)
            for ticket in self.egress.grant(now):
                if ticket not in tickets:
                    continue  # of an earlier run on the same machine
                index, size = tickets.pop(ticket)
                self.sent.append((now, self.senders[index].flow, size))
                due = deque(sorted([*due, (now + self.senders[index].returns_seconds, index)]))
        return self

    def bytes_of(self, flow: Flow, first: float = 0.0, end: float = 1e9) -> int:
        return sum(size for at, who, size in self.sent if who == flow and first <= at < end)


def worst_window(sent: list[tuple[float, Flow, int]]) -> int:
    """The most bytes in any window of five seconds."""
    window: deque[tuple[float, int]] = deque()
    inside = worst = 0
    for at, _, size in sent:
        window.append((at, size))
        inside += size
        while window[0][0] <= at - WINDOW_SECONDS:
            inside -= window.popleft()[1]
        worst = max(worst, inside)
    return worst


def test_three_transfers_of_different_priority_share_by_their_weights() -> None:
    run = Run(Egress(Budgets(RATE)), [Sender(LOW), Sender(NORMAL), Sender(HIGH)]).until(4)
    total = sum(size for _, _, size in run.sent)
    for flow in (LOW, NORMAL, HIGH):
        assert run.bytes_of(flow) / total == pytest.approx(WEIGHTS[flow.priority] / 7, rel=0.05)
    assert total == pytest.approx(RATE * 4.2, rel=0.01)


def test_a_critical_transfer_has_four_fifths_of_the_link_from_its_first_second_on() -> None:
    others = [Sender(Flow("b", "", "high", number)) for number in range(8)]
    run = Run(Egress(Budgets(RATE)), [Sender(LOW), Sender(NORMAL), *others, Sender(CRITICAL, begins=3.0)]).until(5)
    for first in (3.0, 3.5, 4.0):
        share = run.bytes_of(CRITICAL, first, first + 1)
        assert share >= 0.8 * sum(size for at, _, size in run.sent if first <= at < first + 1)
    first_piece = next(at for at, flow, _ in run.sent if flow == CRITICAL)
    assert first_piece - 3.0 < 0.01  # one piece of somebody else at most


def test_the_lowest_priority_never_starves() -> None:
    crowd = [Sender(Flow(f"n{number}", "", "critical", number)) for number in range(40)]
    run = Run(Egress(Budgets(RATE)), [Sender(LOW), Sender(HIGH), *crowd]).until(3)
    for second in range(3):
        assert run.bytes_of(LOW, second, second + 1) >= 0.9 * RATE / sum(WEIGHTS.values())


def test_transfers_of_one_priority_get_the_same_each() -> None:
    flows = [Flow("b", "", "normal", number) for number in range(5)]
    run = Run(Egress(Budgets(RATE)), [Sender(flow) for flow in flows]).until(3)
    amounts = [run.bytes_of(flow) for flow in flows]
    assert max(amounts) - min(amounts) <= 2 * (64 << 10)


def test_who_is_late_by_a_thread_switch_keeps_its_share_and_nothing_is_lost() -> None:
    run = Run(Egress(Budgets(RATE)), [Sender(CRITICAL, returns_seconds=0.004), Sender(LOW)]).until(4)
    sent = sum(size for _, _, size in run.sent)
    assert sent >= 0.97 * RATE * 4
    assert run.bytes_of(CRITICAL) >= 0.8 * (64 << 10) * 4 / 0.004  # as fast as it comes back


def test_a_slow_receiver_of_a_critical_transfer_holds_up_nobody() -> None:
    run = Run(Egress(Budgets(RATE)), [Sender(CRITICAL, returns_seconds=0.1), Sender(LOW)]).until(4)
    assert sum(size for _, _, size in run.sent) >= 0.98 * RATE * 4


def test_a_peer_at_its_own_limit_leaves_the_rest_to_the_others() -> None:
    budgets = Budgets(RATE, peers=(("slow-*", 1_000_000.0),))
    slow, fast = Flow("slow-1", "", "critical", 1), Flow("b", "", "low", 2)
    run = Run(Egress(budgets), [Sender(slow), Sender(fast)]).until(5)
    assert run.bytes_of(slow) == pytest.approx(1_000_000 * 5.2, rel=0.05)
    assert run.bytes_of(slow) + run.bytes_of(fast) == pytest.approx(RATE * 5.2, rel=0.02)


def test_what_goes_to_one_provider_shares_its_budget() -> None:
    budgets = Budgets(None, providers=(("vast", 2_000_000.0),))
    first, second = (Flow(peer, "vast", "normal", 1) for peer in "ab")
    run = Run(Egress(budgets), [Sender(first), Sender(second)]).until(4)
    assert run.bytes_of(first) + run.bytes_of(second) == pytest.approx(2_000_000 * 4.2, rel=0.05)
    assert Egress(budgets).piece_bytes(Flow("c", "nebius")) == 1 << 20


def test_a_loan_is_taken_from_the_node_and_given_back_when_its_time_is_over() -> None:
    egress = Egress(Budgets(RATE))
    assert egress.lend(0.5, int(RATE), 0.0) == RATE / 2  # for two seconds
    run = Run(egress, [Sender(LOW)]).until(4)
    assert run.bytes_of(LOW, 0.5, 1.9) == pytest.approx(RATE / 2 * 1.4, rel=0.05)
    assert run.bytes_of(LOW, 2.2, 3.9) == pytest.approx(RATE * 1.7, rel=0.05)
    assert Egress().lend(0.5, 1, 0.0) is None


def test_a_lower_budget_holds_at_once() -> None:
    egress = Egress(Budgets(RATE))
    Run(egress, [Sender(LOW, ends=1.0)]).until(1)
    egress.change(Budgets(100_000.0))
    run = Run(egress, [Sender(LOW, begins=1.0), Sender(CRITICAL, begins=1.0)]).until(9)
    assert worst_window(run.sent) <= 1.05 * 100_000 * WINDOW_SECONDS
    assert run.bytes_of(LOW) > 0


VARIABLE = {"SPORE_SYNC_BANDWIDTH_MBPS": "7"}
RATES = st.floats(RATE_BYTES_PER_SECOND_MIN, 50_000_000)
SENDERS = st.builds(
    Sender,
    st.builds(
        Flow, st.sampled_from(["a", "b", "c"]), st.sampled_from(["vast", ""]), st.sampled_from([*WEIGHTS]),
        st.integers(0, 3),
    ),
    st.floats(0, 4),
    st.floats(4, 12),
    st.floats(0.0001, 0.5),
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(RATES, RATES, RATES, st.lists(SENDERS, min_size=1, max_size=6))
def test_no_window_of_five_seconds_holds_more_than_a_budget_allows(
    node: float, provider: float, peer: float, senders: list[Sender]
) -> None:
    budgets = Budgets(node, (("vast", provider),), (("a", peer),))
    node_pieces = int(1.2 * node * 12 / (64 << 10)) + 1
    if node_pieces > 4_000:
        senders = senders[:2]
    run = Run(Egress(budgets), senders).until(9)
    assert worst_window(run.sent) <= 1.05 * node * WINDOW_SECONDS
    to_vast = [entry for entry in run.sent if entry[1].provider == "vast"]
    assert worst_window(to_vast) <= 1.05 * provider * WINDOW_SECONDS
    assert worst_window([entry for entry in run.sent if entry[1].peer == "a"]) <= 1.05 * peer * WINDOW_SECONDS


@settings(max_examples=40, deadline=None)
@given(st.lists(SENDERS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_everybody_who_waits_is_served_in_the_end(senders: list[Sender], random: Random) -> None:
    egress = Egress(Budgets(1_000_000.0))
    waiting = {egress.ask(sender.flow, 1 + random.randrange(64 << 10)) for sender in senders * 3}
    now = 0.0
    while waiting:
        waiting -= set(egress.grant(now))
        wake = egress.wake_at(now)
        assert (wake is None) == (not waiting)
        assert wake is None or wake > now
        now = wake or now
    assert now < 3.0


def test_whoever_gives_up_is_not_waited_for() -> None:
    egress = Egress(Budgets(RATE))
    while egress.grant(0.0) or egress.wake_at(0.0) is None:
        gone = egress.ask(CRITICAL, 64 << 10)
    egress.withdraw(CRITICAL, gone)
    assert egress.wake_at(0.0) is None
    egress.withdraw(CRITICAL, gone)


def test_equal_questions_in_equal_order_have_equal_answers() -> None:
    def story() -> list[tuple[float, Flow, int]]:
        budgets = Budgets(RATE, (("vast", RATE / 3),), (("c*", RATE / 9),))
        flows = [
            Flow(peer, provider, priority, 1) for peer in "abc" for provider in ("vast", "") for priority in WEIGHTS
        ]
        return (
            Run(Egress(budgets), [Sender(flow, begins=index / 50) for index, flow in enumerate(flows)]).until(0.6).sent
        )

    assert story() == story()


@pytest.mark.parametrize(
    ("stated", "env", "node"),
    [({}, {}, 50e6), ({}, VARIABLE, 7e6), ({"a": 3_000_000}, VARIABLE, 3e6)],
)  # fmt: skip
def test_what_an_operator_says_now_outranks_environment_and_file(
    stated: dict[str, int], env: dict[str, str], node: float
) -> None:
    limits: tuple[tuple[str, Bandwidth], ...] = (("runpod-*", Bandwidth(9_000_000)), ("free", Bandwidth(None)))
    fleet = Fleet("f", Routing(peer_limits=limits), hosts={"a": Host("a", provider="nebius"), "b": Host("b")})
    said = {name: Bandwidth(rate) for name, rate in stated.items()} | {"runpod-2": Bandwidth(1_000_000)}
    budgets = budgets_of(fleet, "a", env, said)
    assert budgets.node == node
    assert budgets.peers == (("runpod-2", 1e6), ("runpod-*", 9e6), ("free", UNLIMITED))
    assert [rate for _, rate in budgets.of(Flow("runpod-2"))] == [node, 1e6]
    assert [rate for _, rate in budgets.of(Flow("free"))] == [node]


def test_every_priority_of_the_hosts_file_has_a_weight() -> None:
    assert tuple(WEIGHTS) == Priority.__args__  # type: ignore[attr-defined]  # what Literal keeps its choices in
