"""The replica gives up copies: only those made for others, only by the word of enough others, never the last ones."""

from dataclasses import replace
from typing import Any

import pytest

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.fleet import Kind, Routing
from protocol.pins import pin_name
from protocol.shedding import ASK_MS, PROMISE_MS, TRIM_SWEEPS
from protocol.sweeping import FIRST_MS
from protocol.values import NO_DIGEST, Batch, Place, Record
from tests.replicas import NOW, Bench, digest, fleet, holding, member, only, place, private, record, rows_of, sent

KINDS = (Kind("one", versions=1), Kind("all", strategy="broadcast", versions=1))
NAME = "one/x"
INTERVAL_MS = int(Routing().auto_sync_interval_seconds * 1000)
FULL = e.DiskChanged(False, True, 1 << 40, 1 << 40, excess_bytes=1 << 20)
FINE = e.DiskChanged(True, True, 1 << 40, 1 << 30)


def ours(path: str = "x", number: int = 5) -> Place:
    return replace(place(path, number), published=True)


def holder(made: Record, *places: Place, holders: tuple[str, ...] = ("gamma", "delta"), **facts: Any) -> Bench:
    """Alpha holds an artifact of beta's for others; so do the other holders."""
    rows = [made, *(holding(node, 5) for node in ("alpha", *holders))]
    alpha = Bench(of=fleet(kinds=KINDS, **facts)).has(*rows, places=places or (ours(),)).boot()
    return alpha.connect("beta", "gamma", "delta", "epsilon")


def swept(alpha: Bench, *events: e.Event, after_ms: int = FIRST_MS) -> list[f.Effect]:
    """All that follows from the events and a sweep over what the catalogue has."""
    out = [effect for event in events for effect in alpha.done(event)]
    out += alpha.tick(after_ms)
    for scan in only(out, f.Scan):
        page, last = alpha.catalogue.scan(scan.after, scan.limit)
        out += alpha.done(e.Scanned(scan.op, page, last))
    return out + alpha.tick()


def questions(effects: list[f.Effect]) -> list[str]:
    return [peer for peer, _ in sent(effects, m.Confirm)]


def confirms(alpha: Bench, *nodes: str, held: bool = True) -> list[f.Effect]:
    out: list[f.Effect] = []
    for node in nodes:
        out += alpha.done(e.Received(node, m.Confirmed((digest(5),), (digest(5),) if held else ())))
    return out


def unlinked(effects: list[f.Effect]) -> list[str]:
    return [gone.path for unlink in only(effects, f.Unlink) for gone in unlink.places]


def test_when_others_fill_the_disk_a_copy_goes_once_enough_others_confirm_theirs() -> None:
    alpha = holder(record(NAME, 5))
    assert questions(swept(alpha, FULL)) == ["delta", "gamma"]
    assert unlinked(confirms(alpha, "delta")) == []
    assert unlinked(confirms(alpha, "gamma")) == ["x"]
    assert not alpha.replica.ctx.holds(digest(5))


def test_the_withdrawal_is_written_before_the_file_goes() -> None:
    alpha = holder(record(NAME, 5))
    swept(alpha, FULL)
    confirms(alpha, "delta")
    out = alpha.handle(e.Received("gamma", m.Confirmed((digest(5),), (digest(5),))))
    assert unlinked(out) == []
    assert [h.present for c in only(out, f.Commit) for h in c.batch.rows.holdings] == [False]
    assert unlinked(alpha.settle()) == ["x"]


def test_a_withdrawal_that_cannot_be_written_removes_nothing() -> None:
    alpha = holder(record(NAME, 5))
    swept(alpha, FULL)
    confirms(alpha, "delta")
    alpha.handle(e.Received("gamma", m.Confirmed((digest(5),), (digest(5),))))
    assert unlinked(alpha.fail()) == []
    assert alpha.replica.ctx.holds(digest(5))


def test_who_has_lost_its_copy_does_not_count() -> None:
    alpha = holder(record(NAME, 5))
    swept(alpha, FULL)
    assert unlinked(confirms(alpha, "delta") + confirms(alpha, "gamma", held=False)) == []


def test_who_does_not_answer_in_time_does_not_count() -> None:
    alpha = holder(record(NAME, 5))
    swept(alpha, FULL)
    confirms(alpha, "delta")
    alpha.tick(ASK_MS)
    assert unlinked(confirms(alpha, "gamma")) == []


def test_too_few_holders_are_not_even_asked() -> None:
    alpha = holder(record(NAME, 5), holders=("gamma",))
    assert questions(swept(alpha, FULL)) == []


def test_the_origins_own_copy_is_no_receipt() -> None:
    alpha = holder(record(NAME, 5), holders=("beta", "gamma"))
    swept(alpha, FULL)
    assert unlinked(confirms(alpha, "beta", "gamma")) == []


def test_a_disk_that_is_no_emergency_makes_nothing_go_soon() -> None:
    assert questions(swept(holder(record(NAME, 5)), FINE)) == []


def test_while_a_hosts_file_is_rolled_out_nothing_goes() -> None:
    alpha = holder(record(NAME, 5))
    alpha.told("epsilon", replace(member("epsilon", policy_hash="another"), seq=NOW << 17))
    assert questions(swept(alpha, FULL)) == []


def test_a_hosts_file_that_comes_between_question_and_answer_stops_it() -> None:
    alpha = holder(record(NAME, 5))
    swept(alpha, FULL)
    confirms(alpha, "delta")
    alpha.told("epsilon", replace(member("epsilon", policy_hash="another"), seq=NOW << 17))
    assert unlinked(confirms(alpha, "gamma")) == []


@pytest.mark.parametrize(
    ("made", "place_here"),
    [
        (record(NAME, 5, "alpha"), ours()),
        (record(NAME, 5), place("x", 5)),  # a user's own file with the same bytes
    ],
)
def test_what_is_our_own_or_a_users_never_goes(made: Record, place_here: Place) -> None:
    assert questions(swept(holder(made, place_here), FULL)) == []


def test_a_private_copy_that_was_made_for_others_goes_as_well() -> None:
    alpha = holder(record(NAME, 5), private(5))
    swept(alpha, FULL)
    assert unlinked(confirms(alpha, "delta", "gamma")) == [private(5).path]


def test_what_is_pinned_here_never_goes() -> None:
    pin = replace(record(pin_name("alpha", NAME), 0, meta=(("pinned", 1),)), digest=NO_DIGEST)
    alpha = holder(record(NAME, 5)).has(pin)
    assert questions(swept(alpha, FULL)) == []
    alpha.told("beta", replace(pin, hlc=pin.hlc + 1, meta=(("pinned", 0),)))
    assert questions(swept(alpha, after_ms=INTERVAL_MS)) == ["delta", "gamma"]


def test_what_another_name_of_ours_needs_never_goes() -> None:
    alpha = holder(record(NAME, 5)).has(record("one/mine", 5, "alpha"))
    assert questions(swept(alpha, FULL)) == []


def test_what_a_mate_of_the_store_states_stays() -> None:
    """The mate would go on saying that the store has it."""
    alpha = holder(record(NAME, 5)).has(holding("mate", 5, store=alpha_store()))
    assert questions(swept(alpha, FULL)) == []


def alpha_store() -> bytes:
    return Bench().store


def test_no_more_goes_than_must() -> None:
    alpha = holder(record(NAME, 5))
    more = [record(f"one/{number}", number) for number in range(10, 20)]
    places = [replace(place(made.name[4:], number), published=True) for number, made in enumerate(more, 10)]
    rows = [holding(node, number) for node in ("alpha", "gamma", "delta") for number in range(10, 20)]
    alpha.catalogue.apply([Batch(rows_of(*more, *rows), tuple(places))])
    out = swept(alpha, replace(FULL, excess_bytes=2_000))
    asked = {each for peer, question in sent(out, m.Confirm) for each in question.digests}
    assert len(asked) == 2  # of a thousand bytes each


# --- more copies than policy wants ---


def untargeted(alpha: Bench, **facts: Any) -> Record:
    return next(
        made
        for made in (record(f"one/{number}", 5, **facts) for number in range(200))
        if not alpha.replica.receiving.policy.is_target(made)
    )


def trimmed(alpha: Bench) -> list[f.Effect]:
    """Long after anybody came or went."""
    return swept(alpha, after_ms=TRIM_SWEEPS * INTERVAL_MS)


@pytest.mark.parametrize("strategy", ["hybrid", "broadcast"])
def test_a_copy_too_many_goes_late_unless_the_strategy_wants_it(strategy: str) -> None:
    kinds = (Kind("one", strategy=strategy, versions=1, roles=()),)  # type: ignore[arg-type]
    rows = [record(NAME, 5), *(holding(node, 5) for node in ("alpha", "gamma", "delta"))]
    alpha = Bench(of=fleet(kinds=kinds)).has(*rows, places=(ours(),)).boot().connect("beta", "gamma", "delta")
    targeted = alpha.replica.receiving.policy.is_target(record(NAME, 5))
    assert questions(swept(alpha, FINE)) == []
    asked = questions(trimmed(alpha))
    assert bool(asked) == (strategy == "hybrid" and not targeted)


def test_who_comes_or_goes_puts_off_what_is_too_many() -> None:
    alpha = holder(record(NAME, 5))
    alpha.tick(TRIM_SWEEPS * INTERVAL_MS - 2_000)
    alpha.loses("epsilon")
    assert questions(swept(alpha, after_ms=INTERVAL_MS)) == []


# --- confirming ---


def asks(alpha: Bench, peer: str = "beta") -> list[f.Effect]:
    return alpha.done(e.Received(peer, m.Confirm((digest(5),))))


def test_a_holder_looks_at_its_file_before_it_confirms() -> None:
    alpha = holder(record(NAME, 5))
    (look,) = only(asks(alpha), f.CheckHeld)
    assert (look.peer, look.asked, look.stays) == ("beta", (digest(5),), (digest(5),))
    out = alpha.done(e.HeldChecked("beta", look.asked, look.stays))
    assert sent(out, m.Confirmed) == [("beta", m.Confirmed((digest(5),), (digest(5),)))]


def test_a_file_that_changed_is_not_confirmed() -> None:
    alpha = holder(record(NAME, 5))
    asks(alpha)
    out = alpha.done(e.HeldChecked("beta", (digest(5),), ()))
    assert sent(out, m.Confirmed) == [("beta", m.Confirmed((digest(5),), ()))]


def test_what_is_not_held_is_not_confirmed() -> None:
    alpha = Bench(of=fleet(kinds=KINDS)).has(record(NAME, 5)).boot().connect("beta")
    (look,) = only(asks(alpha), f.CheckHeld)
    assert look.stays == ()


def test_what_was_confirmed_is_kept_for_a_while() -> None:
    alpha = holder(record(NAME, 5))
    asks(alpha, "gamma")
    assert questions(swept(alpha, FULL)) == []
    assert questions(swept(alpha, after_ms=PROMISE_MS)) == ["delta", "gamma"]


def test_of_two_that_give_up_the_same_the_first_in_name_order_may() -> None:
    alpha = holder(record(NAME, 5))
    swept(alpha, FULL)
    (look,) = only(asks(alpha, "gamma"), f.CheckHeld)
    assert look.stays == ()  # alpha goes on
    assert unlinked(confirms(alpha, "delta", "gamma")) == ["x"]


def test_the_other_confirms_and_keeps_its_copy() -> None:
    rows = [record(NAME, 5), *(holding(node, 5) for node in ("zeta", "gamma", "delta"))]
    zeta = Bench("zeta", of=fleet(kinds=KINDS)).has(*rows, places=(ours(),)).boot().connect("beta", "gamma", "delta")
    assert questions(swept(zeta, FULL)) == ["delta", "gamma"]
    (look,) = only(asks(zeta, "gamma"), f.CheckHeld)
    assert look.stays == (digest(5),)
    assert unlinked(confirms(zeta, "delta", "gamma")) == []
