"""The replica repairs: the most endangered first, slower than fresh data, after a grace, at once after a goodbye."""

import pytest

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.fleet import Bandwidth, Host, Kind
from protocol.membership import REPAIR_GRACE_MS
from protocol.placement import weight
from protocol.repair import BURST_SECONDS, SHARE
from protocol.sweeping import FIRST_MS
from protocol.values import Record
from tests.replicas import Bench, digest, fleet, holding, only, place, record, sent

KINDS = (Kind("one", versions=1),)
MBIT = 1_000_000


def swept(alpha: Bench, after_ms: int = FIRST_MS) -> list[f.Effect]:
    out = alpha.tick(after_ms)
    for scan in only(out, f.Scan):
        page, last = alpha.catalogue.scan(scan.after, scan.limit)
        out += alpha.done(e.Scanned(scan.op, page, last))
    return out


def offered(effects: list[f.Effect]) -> list[str]:
    return [parcel.record.name for _, offer in sent(effects, m.Offer) for parcel in offer.parcels]


def mine(number: int, size: int = 1_000) -> Record:
    return Record(f"one/{number:03}", 115_343_360_000_000_000, "alpha", digest(number), digest(number), size)


def with_copies(of: dict[int, tuple[str, ...]], size: int = 1_000, **facts: object) -> Bench:
    """Alpha wrote artifacts, by number, that these nodes hold beside it."""
    alpha = Bench(of=fleet(Host("alpha", address="alpha:7946", **facts), kinds=KINDS))  # type: ignore[arg-type]
    for number, holders in of.items():
        rows = [mine(number, size), *(holding(node, number) for node in ("alpha", *holders))]
        alpha.has(*rows, places=[place(f"{number}", number)])
    return alpha.boot().connect("beta", "gamma", "delta", "epsilon")


def test_the_artifact_with_the_fewest_copies_is_repaired_first() -> None:
    alpha = with_copies({1: ("beta",), 2: (), 3: ("gamma",), 4: ()})
    assert list(dict.fromkeys(offered(swept(alpha)))) == ["one/002", "one/004", "one/001", "one/003"]


def test_repair_takes_a_share_of_the_egress_and_no_more() -> None:
    size = 1_000_000
    limit = Bandwidth(4 * size)
    alpha = with_copies(dict.fromkeys(range(40), ("beta",)), size, bandwidth_limit=limit)
    at_once = {*offered(swept(alpha))}
    assert len(at_once) == pytest.approx(4 * SHARE * BURST_SECONDS, abs=1)
    assert alpha.replica.repair.waiting() == 40 - len(at_once)
    more = {*offered(alpha.tick(1_000))} - at_once
    assert len(more) <= 4 * SHARE + 1


def test_fresh_data_makes_repair_slower() -> None:
    size = 1_000_000
    alpha = with_copies(dict.fromkeys(range(40), ("beta",)), size, bandwidth_limit=Bandwidth(8 * size))
    alpha.accepted("one/fresh", 900)
    assert len({*offered(swept(alpha))} - {"one/fresh"}) <= 3


def test_what_waits_for_its_repair_is_at_risk_and_told() -> None:
    size = 1_000_000
    alpha = with_copies(dict.fromkeys(range(40), ("beta",)), size, bandwidth_limit=Bandwidth(size))
    swept(alpha)
    alpha.tick(2_000)
    assert alpha.replica.members.own.at_risk_count == 40


def test_what_has_enough_copies_by_its_turn_is_left_alone() -> None:
    size = 1_000_000
    alpha = with_copies(dict.fromkeys(range(40), ("beta",)), size, bandwidth_limit=Bandwidth(size))
    swept(alpha)
    waiting = [record for _, record in alpha.replica.repair.worst(40)]
    alpha.told("gamma", *(holding("gamma", int(made.name[4:])) for made in waiting))
    for _ in range(60):
        out = alpha.tick()
        assert not {*offered(out)} & {made.name for made in waiting}
    assert alpha.replica.repair.waiting() == 0


def orphan() -> tuple[Bench, Record]:
    """Beta wrote it; alpha is the holder that repairs, gamma the other."""
    number = next(n for n in range(100) if weight(digest(n), "alpha") < weight(digest(n), "gamma"))
    made = record("one/x", number)
    rows = [made, *(holding(node, number) for node in ("alpha", "beta", "gamma"))]
    alpha = Bench(of=fleet(kinds=KINDS)).has(*rows, places=[place("x", number)]).boot()
    return alpha.connect("beta", "gamma", "delta", "epsilon"), made


def test_after_a_goodbye_repair_begins_at_once() -> None:
    alpha, _ = orphan()
    swept(alpha)
    alpha.done(e.Received("gamma", m.Goodbye("maintenance")))
    alpha.done(e.Received("beta", m.Goodbye("maintenance")))
    assert offered(swept(alpha, 1_000)) == ["one/x"]


def test_a_node_that_flaps_moves_nothing() -> None:
    alpha, _ = orphan()
    swept(alpha)
    for _ in range(3):
        alpha.loses("gamma")
        assert offered(swept(alpha, REPAIR_GRACE_MS // 3)) == []
        alpha.connect("gamma")
        alpha.tick()


def test_a_node_that_stays_away_is_replaced_as_soon_as_the_grace_is_over() -> None:
    alpha, _ = orphan()
    swept(alpha)
    alpha.loses("gamma")
    alpha.loses("beta")
    assert offered(swept(alpha, REPAIR_GRACE_MS - 2_000)) == []
    assert offered(swept(alpha, 3_000)) == ["one/x"]


def test_one_holder_repairs_and_all_say_the_same_which() -> None:
    """By a hash of content and node: the work of a dead origin is spread over its holders."""
    number = next(n for n in range(100) if weight(digest(n), "alpha") > weight(digest(n), "gamma"))
    rows = [record("one/x", number), *(holding(node, number) for node in ("alpha", "gamma"))]
    alpha = Bench(of=fleet(kinds=KINDS)).has(*rows, places=[place("x", number)]).boot()
    alpha.connect("beta", "gamma", "delta", "epsilon")
    alpha.done(e.Received("beta", m.Goodbye("maintenance")))
    assert offered(swept(alpha)) == []
