"""The replica compares: sketches find what two nodes do not both have, whatever it is, and rows close the gap."""

from collections.abc import Sequence

import pytest

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.cells import PREFIX_CELLS
from protocol.comparing import QUIET_MS, RETRY_MS_MAX, STREAM_MS_MIN
from protocol.spreading import pages
from protocol.values import Record, Rows
from tests.replicas import Bench, holding, only, record, sent

NAME = "checkpoint/checkpoints/a"


def ready(*rows: Record, node: str = "alpha") -> Bench:
    """A node that knows these records, with a session to everybody, long after the last news."""
    bench = Bench(node).boot().connect("beta" if node == "alpha" else "alpha", "gamma")
    bench.has(*rows)
    bench.tick(60_000)
    return bench


def records(first: int, count: int) -> list[Record]:
    return [record(f"checkpoint/{number}", number, origin="delta") for number in range(first, first + count)]


def cells(bench: Bench, count: int = PREFIX_CELLS) -> m.CellsMessage:
    return m.CellsMessage(bench.catalogue.sketch().cells(0, count))


def performed(bench: Bench, effect: f.Effect) -> list[m.Message]:
    """What a driver sends for this effect."""
    match effect:
        case f.Send():
            return [effect.message]
        case f.StreamRows(only=None):
            return [m.RowsMessage(page) for page in bench.catalogue.rows_pages()]
        case f.StreamRows():
            return [m.RowsMessage(page) for page in pages(bench.catalogue.rows_of(effect.only))]
        case f.StreamPrints():
            return list(bench.catalogue.prints_pages())
        case f.ComparePrints():
            rows, lacking = bench.catalogue.compare(effect.prints)
            messages: list[m.Message] = [m.RowsMessage(page) for page in pages(rows)] if rows else []
            return [*messages, m.Lacking(lacking)] if lacking else messages
        case _:
            return []


def converse(alpha: Bench, beta: Bench, first: m.Message) -> list[m.Message]:
    """What both send each other, from a first message of alpha's on, until neither has an answer; commits are done."""
    said: list[m.Message] = []
    waiting: list[tuple[Bench, Bench, m.Message]] = [(alpha, beta, first)]
    while waiting:
        sender, receiver, message = waiting.pop(0)
        said.append(message)
        assert len(said) < 2_000, "they never end"
        out = receiver.done(e.Received(sender.node, message))
        for effect in out:
            if getattr(effect, "peer", None) == sender.node:
                waiting += [(receiver, sender, answer) for answer in performed(receiver, effect)]
    return said


def same(alpha: Bench, beta: Bench) -> bool:
    known = [{row for page in bench.catalogue.rows_pages() for row in page.records} for bench in (alpha, beta)]
    return known[0] == known[1]


# --- when ---


def test_a_sketch_goes_to_one_peer_at_each_interval_when_nothing_happens() -> None:
    alpha = ready()
    sketches = [sent(alpha.tick(), m.CellsMessage) for _ in range(60)]
    assert sum(map(len, sketches)) == 2  # a gossip interval is 30 s
    assert {peer for some in sketches for peer, _ in some} <= {"beta", "gamma"}


def test_a_sketch_follows_news_within_two_ticks() -> None:
    alpha = ready()
    alpha.accepted(NAME, 5)
    sketches = sent(alpha.tick(QUIET_MS) + alpha.tick(QUIET_MS), m.CellsMessage)
    assert [message for _, message in sketches][-1] == cells(alpha)


def test_after_news_those_behind_the_neighbours_are_compared_with() -> None:
    """They miss it when a neighbour has just died and nobody knows."""
    alpha = ready().connect("delta", "epsilon", "zeta")
    alpha.accepted(NAME, 5)
    told = {peer for peer, _ in sent(alpha.effects, m.RowsMessage)}
    sketches = {peer for peer, _ in sent(alpha.tick(QUIET_MS) + alpha.tick(QUIET_MS), m.CellsMessage)}
    assert sketches == set(alpha.replica.members.beyond())
    assert len(sketches) == 2
    assert sketches - told


def test_of_two_that_meet_and_differ_the_one_with_the_smaller_id_begins() -> None:
    alpha, beta = (Bench(node).boot() for node in ("alpha", "beta"))
    begun = [
        sent(bench.done(e.SessionUp(peer.node, peer.replica.hello())), m.CellsMessage)
        for bench, peer in ((alpha, beta), (beta, alpha))
    ]
    assert [len(messages) for messages in begun] == [1, 0]


def test_equal_sketches_end_the_matter() -> None:
    alpha = ready()
    assert alpha.hears("beta", cells(alpha)) == []


def test_a_difference_while_rows_are_under_way_is_none_yet() -> None:
    alpha, beta = ready(), ready(*records(1, 3), node="beta")
    alpha.accepted(NAME, 5)
    alpha.now_ms += QUIET_MS - 1
    assert alpha.hears("beta", cells(beta)) == []


def test_under_a_load_that_never_rests_what_differs_for_long_is_exchanged_all_the_same() -> None:
    alpha, beta = ready(), ready(*records(1, 3), node="beta")
    answered = []
    for number in range(200):
        alpha.accepted(f"checkpoint/own/{number}", 1000 + number)
        alpha.now_ms += 500
        answered += sent(alpha.hears("beta", cells(beta)), m.CellsWanted)
    assert answered


# --- how ---


@pytest.mark.parametrize(
    ("ours", "theirs"), [(1, 0), (0, 1), (5, 5), (0, 20), (150, 150), (400, 10), (3_000, 3_000), (12_000, 0)]
)
def test_whatever_differs_both_end_with_the_same_rows(ours: int, theirs: int) -> None:
    shared = records(0, 30)
    alpha = ready(*shared, *records(100, ours))
    beta = ready(*shared, *records(100_000, theirs), node="beta")
    converse(alpha, beta, cells(alpha))
    assert same(alpha, beta)


def test_a_few_differences_take_one_round_and_only_the_rows_that_differ() -> None:
    shared = records(0, 500)
    alpha, beta = ready(*shared, *records(1_000, 4)), ready(*shared, *records(2_000, 3), node="beta")
    said = converse(alpha, beta, cells(alpha))
    assert [type(message) for message in said] == [m.CellsMessage, m.RowsMessage, m.Lacking, m.RowsMessage]
    assert sum(len(message.rows.records) for message in said if isinstance(message, m.RowsMessage)) == 7


def test_more_differences_take_a_second_round_of_as_many_cells_as_they_need() -> None:
    shared = records(0, 500)
    alpha, beta = ready(*shared, *records(1_000, 80)), ready(*shared, *records(2_000, 70), node="beta")
    kinds = [type(message) for message in converse(alpha, beta, cells(alpha))]
    assert kinds[:3] == [m.CellsMessage, m.CellsWanted, m.CellsMessage]
    assert m.Prints not in kinds
    assert same(alpha, beta)


def test_too_many_for_cells_are_compared_page_by_page() -> None:
    """The simulator's sketches hold 512 cells, an agent's 16,384."""
    alpha, beta = ready(*records(1_000, 900)), ready(*records(5_000, 900), node="beta")
    said = converse(alpha, beta, cells(alpha))
    assert any(isinstance(message, m.Prints) for message in said)
    assert same(alpha, beta)


def test_a_node_with_next_to_nothing_is_sent_all_without_a_comparison() -> None:
    for first in (True, False):
        alpha, beta = ready(*records(1_000, 2_000)), ready(node="beta")
        one, other = (alpha, beta) if first else (beta, alpha)
        said = converse(one, other, cells(one))
        assert not any(isinstance(message, m.Prints) for message in said)
        assert same(alpha, beta)


def test_an_exchange_of_everything_with_one_peer_is_bounded_in_time() -> None:
    alpha, beta = ready(*records(1_000, 900)), ready(*records(5_000, 900), node="beta")
    large = cells(beta, 512)
    assert only(alpha.hears("beta", large), f.StreamPrints)
    alpha.now_ms += STREAM_MS_MIN - 1
    assert alpha.hears("beta", large) == []
    alpha.now_ms += 1
    assert only(alpha.hears("beta", large), f.StreamPrints)


def test_rows_are_given_to_whom_they_lack() -> None:
    alpha = ready()
    assert alpha.hears("beta", m.Lacking((5, 6))) == [f.StreamRows("beta", (5, 6))]
    assert alpha.hears("beta", m.Lacking(())) == [f.StreamRows("beta")]


def test_a_withdrawn_holding_that_a_peer_still_counts_is_withdrawn_there_too() -> None:
    alpha, beta = ready(), ready(node="beta")
    alpha.has(holding("gamma", 7, seq=9, present=False))
    beta.has(holding("gamma", 7, seq=5))
    converse(alpha, beta, cells(alpha))
    assert beta.catalogue.holdings(holding("gamma", 7).digest) == ()
    assert alpha.catalogue.sketch().fold() == beta.catalogue.sketch().fold()


# --- what will not be taken ---


def test_a_row_that_a_peer_never_takes_is_tried_more_and_more_seldom_and_reported_once() -> None:
    """A version that the rule has dropped there, while here, by another hosts file, it is kept."""
    alpha, beta = ready(*records(1, 1), *records(2, 2)), ready(node="beta")
    tries, reports = [], []
    for second in range(1_300):
        out = alpha.hears("beta", cells(beta)) + alpha.tick()
        tries += [second] * len(only(out, f.StreamRows))
        reports += [report for report in only(out, f.Report) if report.event == "row_not_taken"]
    assert tries == [0, 2, 10, 42, 170, 682, 1282]
    assert [report.message for report in reports] == [
        "3 rows still differ at beta: does it go by our file?"
    ]  # one is its own
    assert RETRY_MS_MAX == 600_000


def test_fingerprints_that_nobody_has_are_answered_with_nothing() -> None:
    beta: Bench = ready(node="beta")
    wanted: Sequence[f.Effect] = beta.hears("alpha", m.Lacking((12345,)))
    assert [performed(beta, effect) for effect in wanted] == [[m.RowsMessage(Rows())]]
