"""A node that was removed is gone for good: it counts for nothing, nobody brings it back, and repair begins at once."""

from dataclasses import replace

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.clock import COUNTER_BITS
from protocol.declared import removed_name
from protocol.values import NO_DIGEST, Record
from tests.replicas import NOW, Bench, fleet, holding, member, only, place, record, sent

NAME = "checkpoint/checkpoints/a"


def ready(*peers: str) -> Bench:
    return Bench().boot().connect(*(peers or ("beta", "gamma", "delta")))


def removal(node: str, removed: int = 1, at_ms: int = NOW + 1) -> Record:
    return Record(
        removed_name(node), at_ms << COUNTER_BITS, "beta", NO_DIGEST, NO_DIGEST, 0, meta=(("removed", removed),)
    )


def test_it_is_not_alive_and_its_session_ends() -> None:
    alpha = ready()
    out = alpha.told("beta", removal("gamma"))
    assert [effect.peer for effect in only(out, f.Hangup)] == ["gamma"]
    assert not alpha.replica.members.is_alive("gamma")
    assert [report.event for report in only(out, f.Report)].count("removed") == 1


def test_what_it_held_is_no_copy_from_that_moment_on() -> None:
    """Not after the grace that others are given: it is not coming back."""
    alpha = ready().has(record(NAME, 5, origin="alpha"), holding("beta", 5), holding("gamma", 5))
    assert alpha.replica.debts.enough(record(NAME, 5, origin="alpha"), 0, 0)
    alpha.told("beta", removal("gamma"))
    assert not alpha.replica.debts.enough(record(NAME, 5, origin="alpha"), 0, 0)


def sweep(alpha: Bench, after_ms: int = 1_000) -> list[f.Effect]:
    """The sweep that is due by now, read to its end; all that followed."""
    (scan,) = only(alpha.tick(after_ms), f.Scan)
    page, last = alpha.catalogue.scan(scan.after, scan.limit)
    return alpha.done(e.Scanned(scan.op, page, last)) + alpha.tick() + alpha.tick()


def test_the_first_holder_makes_the_missing_copy_at_once() -> None:
    rows = (record(NAME, 5, origin="gamma"), holding("alpha", 5), holding("gamma", 5))
    alpha = ready().has(*rows, places=[place("checkpoints/a", 5)])
    assert sent(sweep(alpha, 16_000), m.Offer) == []
    alpha.told("beta", removal("gamma"))
    out = sweep(alpha)
    assert {parcel.record.name for _, offer in sent(out, m.Offer) for parcel in offer.parcels} == {NAME}


def test_rows_that_others_still_tell_of_it_do_not_bring_it_back() -> None:
    alpha = ready()
    alpha.told("beta", removal("gamma"))
    alpha.handle(e.SessionDown("gamma", "hung up"))
    alpha.told("beta", replace(member("gamma"), seq=(NOW + 60_000) << COUNTER_BITS))
    assert not alpha.replica.members.is_alive("gamma")


def test_it_is_never_dialled_again() -> None:
    alpha = ready("beta", "delta")
    alpha.told("beta", removal("gamma"))
    out = [effect for _ in range(60) for effect in alpha.tick(15_000)]
    assert "gamma" not in {dial.peer for dial in only(out, f.Dial)}


def test_a_session_that_it_still_gets_ends_at_once() -> None:
    alpha = ready("beta")
    alpha.told("beta", removal("gamma"))
    alpha.effects.clear()
    alpha.connect("gamma")
    assert [effect.peer for effect in only(alpha.effects, f.Hangup)] == ["gamma"]
    assert not alpha.replica.members.is_alive("gamma")


def test_it_stays_removed_after_a_restart() -> None:
    alpha = Bench().has(removal("gamma"), member("gamma")).boot().connect("beta", "gamma")
    assert not alpha.replica.members.is_alive("gamma")
    assert alpha.replica.members.is_alive("beta")


def test_whoever_joins_anew_is_a_member_again() -> None:
    alpha = ready()
    alpha.told("beta", removal("gamma"))
    alpha.done(e.SessionDown("gamma", "hung up"))
    alpha.told("beta", removal("gamma", removed=0, at_ms=NOW + 5))
    alpha.connect("gamma")
    assert alpha.replica.members.is_alive("gamma")


def test_an_older_removal_that_arrives_late_changes_nothing() -> None:
    alpha = ready()
    alpha.told("beta", removal("gamma", removed=0, at_ms=NOW + 5))
    alpha.told("delta", removal("gamma", removed=1, at_ms=NOW + 1))
    assert alpha.replica.members.is_alive("gamma")


def test_a_removed_node_is_not_expected() -> None:
    alpha = Bench(of=fleet()).boot().connect("beta")
    before = alpha.replica.members.down()
    alpha.told("beta", removal("gamma"))
    assert alpha.replica.members.down() == before - 1
