"""A node that must go within a deadline: what it saves, in which order, and that it says exactly what it did not."""

from random import Random

import pytest

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.fleet import Kind
from tests.leavings import RATE, World
from tests.replicas import Bench, only, sent

PROMPT = {"beta": "prompt", "gamma": "prompt", "delta": "prompt"}
NPZ = Kind("npz", versions=1_000)


def world(neighbours: dict[str, str] | None = None, **facts: object) -> World:
    return World(neighbours or PROMPT, **facts)  # type: ignore[arg-type]


def sizes(seed: int, total: int) -> list[int]:
    """Artifacts of a few bytes to a quarter of the total."""
    random, left, drawn = Random(seed), total, []
    while left > 0:
        size = min(left, random.choice((200, 5_000, 60_000, 400_000, total // 4)))
        drawn.append(size)
        left -= size
    return drawn


@pytest.mark.parametrize("budget_ms", [4_000, 25_000])
@pytest.mark.parametrize("seed", range(4))
def test_what_fits_into_four_fifths_of_the_time_is_saved(seed: int, budget_ms: int) -> None:
    w = world()
    owed = w.owes(*sizes(seed, RATE * budget_ms * 8 // 10_000))
    w.connect().leave(budget_ms)
    assert w.lost(owed) == []
    assert w.gone_at_ms <= budget_ms


@pytest.mark.parametrize("fault", ["dead", "stalled", "slow"])
@pytest.mark.parametrize("seed", range(3))
def test_a_neighbour_that_fails_costs_little_of_it(seed: int, fault: str) -> None:
    w = world({"beta": "prompt", "gamma": fault, "delta": "prompt", "epsilon": "prompt"})
    owed = w.owes(*sizes(seed, RATE * 3))
    w.connect().leave(8_000)
    assert w.lost(owed) == []
    assert w.gone_at_ms <= 8_000


def test_beyond_it_the_report_names_exactly_what_is_lost() -> None:
    w = world()
    owed = w.owes(*[300_000] * 40)
    w.connect().leave(4_000)
    lost = w.lost(owed)
    assert 0 < len(lost) < 40 * 300_000 // RATE * 4
    assert w.exit is not None
    assert w.exit.farewell is not None
    report = w.exit.farewell
    assert {u.key for u in report.named if not u.copies} == {r.key for r in lost}
    assert (report.lost, report.lost_bytes) == (len(lost), sum(r.size for r in lost))
    assert all(u.why for u in report.named)
    assert {peer for peer, _ in w.farewells()} == set(PROMPT)
    assert {message for _, message in w.farewells()} == {report}
    assert sum(saved.artifacts for saved in report.saved) >= 40 - len(lost)


def test_the_uplink_is_used_to_the_end() -> None:
    w = world()
    w.owes(*[300_000] * 40)
    w.connect().leave(4_000)
    assert w.sent_bytes >= 0.85 * RATE * 4


def test_first_copies_of_all_come_before_second_ones() -> None:
    w = world()
    owed = w.owes(*[100_000] * 30)
    w.connect().leave(3_700)
    assert w.lost(owed) == []
    assert w.exit is not None
    assert w.exit.unsafe  # the time is not enough for two of each


def test_with_time_enough_every_copy_is_made_and_the_node_goes_at_once() -> None:
    w = world()
    w.owes(*[50_000] * 10)
    w.connect().leave(100_000)
    assert w.exit is not None
    assert w.exit.unsafe == ()
    assert w.gone_at_ms < 3_000
    assert w.sent_bytes == pytest.approx(2 * 500_000, rel=0.05)


def test_two_copies_in_one_domain_are_followed_by_one_in_another() -> None:
    w = World({"beta": "prompt", "delta": "prompt", "gamma": "dead"})
    for name, domain in (("beta", "one"), ("delta", "one"), ("gamma", "two")):
        w.following(lambda name=name, domain=domain: w.alpha.connect(name, domain=domain))  # type: ignore[misc]
    owed = w.owes(*[50_000] * 4)
    w.noticed(60)
    for _ in range(200):
        w.step()
    assert all(record.digest in w.has["beta"] and record.digest in w.has["delta"] for record in owed)
    assert w.alpha.replica.debts.own_open()  # gamma, the only one elsewhere, has not answered yet
    w.neighbours["gamma"] = "prompt"
    for _ in range(600):
        w.step()
    assert w.alpha.replica.debts.own_open() == []
    assert all(record.digest in w.has["gamma"] for record in owed)


def test_the_smallest_go_first_and_a_kind_of_high_priority_before_them() -> None:
    kinds = (NPZ, Kind("model", versions=1_000, priority="high"))
    w = world({"beta": "prompt"}, kinds=kinds)
    large = w.owes(900_000)
    small = w.owes(10_000, 20_000)
    first = w.owes(500_000, kind="model")
    w.noticed(60).connect()
    while w.lost(large):
        w.step()
    offers = [parcel.record for _, offer in sent(w.alpha.effects, m.Offer) for parcel in offer.parcels]
    assert offers == [*first, *small, *large]


def test_a_transfer_that_cannot_end_in_time_is_given_up_for_those_that_can() -> None:
    w = world()
    (huge,) = w.owes(100 * RATE)
    w.connect()
    for _ in range(50):
        w.step()
    assert [stream.records for stream in w.streams] != []
    small = w.owes(*[200_000] * 8)
    w.leave(4_000)
    assert only(w.alpha.effects, f.Abandon) != []
    assert w.lost(small) == []
    assert w.lost([huge]) == [huge]


def test_what_cannot_fit_is_still_tried_when_nothing_else_is_left() -> None:
    """The estimate may be wrong: here the limit says less than the uplink gives."""
    w = world(rate=10 * RATE, limit=RATE)
    owed = w.owes(6 * RATE)
    w.connect().leave(4_000)
    assert w.lost(owed) == []


def test_an_uplink_slower_than_its_limit_is_found_out() -> None:
    w = world(rate=RATE // 4, limit=RATE * 100)
    owed = w.owes(*[20_000] * 40)
    w.connect().leave(6_000)
    assert w.lost(owed) == []


def test_before_any_byte_the_records_are_told() -> None:
    w = world()
    owed = w.owes(*[300_000] * 5)
    w.connect()
    before = len(w.alpha.effects)
    w.alpha.done(e.Notice(w.alpha.now_ms + 4_000, "soon"))
    after = w.alpha.effects[before:]
    told = {r.key for _, rows in sent(after, m.RowsMessage) for r in rows.rows.records}
    assert told == {r.key for r in owed}
    kinds = [type(s.message) for s in only(after, f.Send) if isinstance(s.message, m.RowsMessage | m.Offer)]
    assert m.Offer not in kinds[: kinds.index(m.RowsMessage)]


def test_persistent_peers_only_while_there_are_enough() -> None:
    w = World({"beta": "prompt", "gamma": "prompt", "delta": "prompt"})
    owed = w.owes(*[100_000] * 6)
    w.alpha.connect("beta", "gamma").connect("delta", ephemeral=True)
    w.leave(4_000)
    assert w.lost(owed) == []
    assert w.has["delta"] == {}


def test_ephemeral_peers_are_better_than_none() -> None:
    w = World({"beta": "prompt"})
    owed = w.owes(*[100_000] * 6)
    w.connect(ephemeral=True).leave(4_000)
    assert w.lost(owed) == []


# --- notices ---


def test_a_node_with_a_notice_goes_on_accepting_and_takes_nothing_for_others() -> None:
    w = world()
    w.connect()
    w.noticed(60)
    owed = w.owes(50_000)
    for _ in range(20):
        w.step()
    assert w.lost(owed) == []
    assert w.exit is None
    assert not w.alpha.replica.members.own.accepting
    assert [s.member.accepting for s in (w.alpha.replica.hello(),)] == [False]


def test_a_notice_that_is_withdrawn_leaves_no_trace() -> None:
    w = world()
    w.connect()
    w.noticed(60)
    w.alpha.done(e.Notice(0, "the provider has changed its mind"))
    w.alpha.done(e.DiskChanged(True, True, 1 << 40, 1 << 30))
    assert w.alpha.replica.members.own.accepting
    made = w.owes(50_000)
    for _ in range(20):
        w.step()
    assert w.lost(made) == []


def test_peers_are_not_served_while_the_uplink_is_needed() -> None:
    w = world()
    (made,) = w.owes(50_000)
    w.connect()
    w.alpha.done(e.Notice(w.alpha.now_ms + 60_000, "soon"))
    assert sent(w.alpha.hears("beta", m.Ask(5, (made.digest,))), m.Offer) == []


def test_a_farewell_is_reported_by_those_who_stay() -> None:
    beta = Bench("beta").boot().connect("alpha")
    lost = m.Unsafe(_record().key, _record().digest, 500, 0, "the time was over before its turn came")
    out = beta.hears("alpha", m.Farewell(3, 900, (m.Saved("gamma", 2, 400),), 1, 500, 1, 500, (lost,)))
    reports = [(r.level, r.event) for r in only(out, f.Report)]
    assert reports == [("error", "farewell"), ("warning", "farewell")]
    assert "1 of them (500 bytes) are nowhere else" in only(out, f.Report)[0].message
    assert "is on this disk alone: the time was over" in only(out, f.Report)[1].message


def _record():  # type: ignore[no-untyped-def]
    from tests.replicas import record

    return record("npz/training/a", 5, origin="alpha")
