"""Fingerprints: they tell rows that differ apart, and do not change from release to release."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.fingerprints import (
    cluster_key,
    fingerprint_of_holding,
    fingerprint_of_record,
    holding_fingerprint,
    record_fingerprint,
)
from protocol.values import Holding, Record, State

D1, D2 = bytes([1]) * 32, bytes([2]) * 32
S1, S2 = bytes([3]) * 16, bytes([4]) * 16
KEY = cluster_key("fleet")
RECORD = Record("model/best.pth", 5 << 16, "alpha", D1, D2, 70_000)
HOLDING = Holding("beta", S1, D1, 9)


def test_fingerprints_are_what_they_always_were() -> None:
    """Nodes of two releases compare them: another value here would make them exchange everything for ever."""
    assert record_fingerprint(KEY, RECORD) == 0x0101014DE8F93801
    assert holding_fingerprint(KEY, HOLDING) == 0x01010158858F0DBF


def test_whatever_can_differ_between_two_rows_shows() -> None:
    rows = [
        RECORD,
        replace(RECORD, name="model/best.pt"),
        replace(RECORD, hlc=6 << 16),
        replace(RECORD, origin="beta"),
        replace(RECORD, digest=D2),
        replace(RECORD, state=State.DELETED),
    ]
    holdings = [
        HOLDING,
        replace(HOLDING, node="alpha"),
        replace(HOLDING, store=S2),
        replace(HOLDING, digest=D2),
    ]
    prints = [record_fingerprint(KEY, row) for row in rows] + [holding_fingerprint(KEY, row) for row in holdings]
    assert len({*prints}) == len(prints)
    assert all(0 <= value < 1 << 64 for value in prints)


def test_what_may_differ_without_a_difference_does_not_show() -> None:
    """Restating a fact under a new number, or what is carried along unread, makes no node stream its rows."""
    assert holding_fingerprint(KEY, replace(HOLDING, seq=10)) == holding_fingerprint(KEY, HOLDING)
    assert record_fingerprint(KEY, replace(RECORD, meta=(("a", 1),))) == record_fingerprint(KEY, RECORD)


def test_rows_of_two_clusters_never_look_alike() -> None:
    other = cluster_key("fleet2")
    assert record_fingerprint(KEY, RECORD) != record_fingerprint(other, RECORD)
    assert holding_fingerprint(KEY, HOLDING) != holding_fingerprint(other, HOLDING)


def test_the_forms_from_fields_are_the_same() -> None:
    assert fingerprint_of_record(KEY, RECORD.name, RECORD.hlc, RECORD.origin, 0, D1) == record_fingerprint(KEY, RECORD)
    assert fingerprint_of_holding(KEY, "beta", S1, D1) == holding_fingerprint(KEY, HOLDING)


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8"), max_size=8), st.integers(0, 1 << 62)), unique=True))
def test_no_two_names_and_stamps_share_a_fingerprint(rows: list[tuple[str, int]]) -> None:
    prints = {record_fingerprint(KEY, replace(RECORD, name=name, hlc=hlc)) for name, hlc in rows}
    assert len(prints) == len(rows)
