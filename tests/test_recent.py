"""What the core remembers of the manifest: whatever happened, the same answers as asking the manifest itself."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.catalogue import HOLDERS_MAX, VERSIONS_MAX
from protocol.context import Context
from protocol.fleet import Fleet
from protocol.recent import ANSWER_ROWS_MAX, KEPT_MAX, Recent
from protocol.values import NO_DIGEST, Batch, HoldingKey, RecordKey, Rows
from simulations.memory import MemoryCatalogue
from tests.test_catalogue_contract import (
    CLUSTER,
    D1,
    D2,
    NODE,
    S1,
    S2,
    answers,
    groups,
    holding,
    keys,
    place,
    put,
    record,
)

NAMES = ["model/a", "model/a/b", "game/alpha/x", "game/beta/\u00fc", "npz/\U0001f600"]
PATHS = ["a", "a/b", "b"]


def pair() -> tuple[MemoryCatalogue, Recent]:
    manifest = MemoryCatalogue(CLUSTER, NODE)
    return manifest, Recent(manifest)


def commit(recent: Recent, *batches: Batch) -> None:
    for batch in batches:
        recent.begin(batch)
    for batch in batches:
        recent.committed(batch)


class Deaf:
    """A manifest that must not be asked any more."""

    def __getattr__(self, name: str) -> Any:
        def ask(*_arguments: object) -> None:
            raise AssertionError(f"the manifest was asked for {name}")

        return ask


def questions(recent: Recent) -> list[Callable[[], object]]:
    """Each look-up by itself, so that what is kept of one kind meets what is not kept of another."""
    asked: list[Callable[[], object]] = [lambda: None, lambda: recent.expect(NAMES, [D1, D2], PATHS)]
    asked += [partial(recent.versions, name) for name in NAMES]
    asked += [partial(recent.place, path) for path in PATHS]
    for digest in (NO_DIGEST, D1, D2):
        asked += [partial(look_up, digest) for look_up in (recent.sharers, recent.places, recent.holdings)]
    return asked


@given(groups, st.lists(st.integers(0, 18), min_size=1, max_size=60), st.lists(keys, max_size=4))
@settings(max_examples=100, deadline=None)
def test_what_is_remembered_is_what_the_manifest_says_after_any_history(
    history: list[list[Batch]], moments: list[int], asked: list[RecordKey]
) -> None:
    """Asked before, between the manifest's commit and the core's `Durable`, and while the core goes through a group."""
    manifest, recent = pair()
    ask = questions(recent)
    moment = cycle(moments)

    def look() -> None:
        ask[next(moment)]()
        ask[next(moment)]()

    for group in history:
        for batch in group:
            recent.begin(batch)
            look()
        manifest.apply(group)
        look()
        for batch in group:
            recent.committed(batch)
            look()
        assert [recent.record(key) for key in asked] == [manifest.record(key) for key in asked]
        kept = deepcopy(recent)  # to be asked everything would be to keep everything
        assert answers(kept) == answers(manifest)
        kept.expect(NAMES, [D1, D2], PATHS)
        assert answers(kept) == answers(manifest)


def test_what_a_path_or_a_name_had_before_need_not_be_known() -> None:
    manifest, recent = pair()
    before, after = put(place("a"), record()), Batch(places=(place("a", D2),), forget_records=(record().key,))
    manifest.apply([before])
    assert recent.places(D1) == (place("a"),)
    assert recent.sharers(D1) == (record(),)
    manifest.apply([after])
    commit(recent, after)
    assert recent.places(D1) == recent.sharers(D1) == ()
    assert recent.places(D2) == (place("a", D2),)


def test_what_was_asked_or_committed_is_not_asked_again() -> None:
    _, recent = pair()
    recent.expect(["model/a.pth", "model/b"], [D1, D2], ["a", "b"])
    assert recent.sharers(D1) == ()
    assert recent.places(D1) == ()
    recent._catalogue = Deaf()  # type: ignore[assignment]
    commit(recent, put(record(), holding(), place("a")))
    assert recent.versions("model/a.pth") == recent.sharers(D1) == (record(),)
    assert recent.record(record().key) == record()
    assert recent.holdings(D1) == (holding(),)
    assert recent.places(D1) == (place("a"),)
    assert recent.place("a") == place("a")
    assert recent.holding(HoldingKey(D1, "beta", S2)) is None
    assert recent.versions("model/b") == ()


def test_a_withdrawal_is_remembered_and_no_holding() -> None:
    manifest, recent = pair()
    batches = [put(holding(seq=1)), put(holding(seq=5, present=False)), put(holding(seq=3))]
    recent.holdings(D1)
    manifest.apply(batches)
    commit(recent, *batches)
    assert recent.holdings(D1) == ()
    assert recent.holding(HoldingKey(D1, "alpha", S1)) == holding(seq=5, present=False)


def test_after_a_refused_row_or_a_failure_the_manifest_is_asked_again() -> None:
    _, recent = pair()
    recent.versions("model/a.pth")
    commit(recent, put(record()))
    assert recent.versions("model/a.pth") == (record(),)
    recent.forget()
    assert recent.versions("model/a.pth") == ()


@pytest.mark.parametrize("refused", [False, True])
def test_a_row_that_the_manifest_refused_is_not_remembered(refused: bool) -> None:
    """The manifest of this test takes no row at all, and says so or not."""
    ctx = Context(NODE, S1, Fleet("c"), Recent(MemoryCatalogue(CLUSTER, NODE)))
    assert ctx.versions("model/a.pth") == []
    ctx.commit(put(record()), lambda: None)
    assert ctx.versions("model/a.pth") == [record()]
    ctx.durable(1, refused)
    assert ctx.versions("model/a.pth") == ([] if refused else [record()])


def test_a_failed_commit_is_not_remembered_even_where_it_was_seen() -> None:
    manifest, recent = pair()
    ctx = Context(NODE, S1, Fleet("c"), recent)
    ctx.commit(put(record()), lambda: None)
    manifest.apply([put(record())])
    assert recent.sharers(D1) == recent.versions("model/a.pth") == (record(),)
    manifest.restore(MemoryCatalogue(CLUSTER, NODE).snapshot())
    ctx.failed(1, 1, "no space left on device")
    assert ctx.versions("model/a.pth") == []
    assert recent.sharers(D1) == ()


def test_what_is_seen_before_its_commit_is_told_does_not_hide_whose_bytes_it_concerns() -> None:
    """Else bytes that a version needs would be taken for unneeded."""
    manifest, recent = pair()
    manifest.apply([put(place("a"))])
    assert recent.sharers(D1) == ()
    assert recent.places(D1) == (place("a"),)
    batch = put(record(), place("a", D2))
    recent.begin(batch)
    manifest.apply([batch])
    assert recent.versions("model/a.pth") == (record(),)
    assert recent.place("a") == place("a", D2)
    recent.committed(batch)
    assert recent.sharers(D1) == (record(),)
    assert recent.places(D1) == ()


def test_long_answers_are_not_kept_and_are_cut_as_the_manifest_cuts_them() -> None:
    manifest, recent = pair()
    for many in (ANSWER_ROWS_MAX, ANSWER_ROWS_MAX + 1, VERSIONS_MAX, VERSIONS_MAX + 1):
        batch = Batch(Rows(tuple(record(hlc=number) for number in range(many))))
        recent.versions("model/a.pth")
        manifest.apply([batch])
        commit(recent, batch)
        assert recent.versions("model/a.pth") == manifest.versions("model/a.pth")
    holders = Batch(Rows(holdings=tuple(holding(node=f"n{number}") for number in range(HOLDERS_MAX + 1))))
    manifest.apply([holders])
    commit(recent, holders)
    assert recent.holdings(D1) == manifest.holdings(D1)


def test_no_table_grows_beyond_its_bound() -> None:
    _, recent = pair()
    for number in range(3 * KEPT_MAX):
        recent.versions(f"model/{number}")
    assert len(recent._versions._young) + len(recent._versions._old) <= KEPT_MAX
