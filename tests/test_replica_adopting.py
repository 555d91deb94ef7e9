"""Adopting what a lost node had accepted: delivered under its own stamp and origin, and never taken from a live one."""

import pytest

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.values import Record
from tests.replicas import Bench, fleet, holding, only, private, record, sent, store_of

NAME = "checkpoint/checkpoints/step-5"


def lost(**facts: object) -> Record:
    return record(NAME, 5, origin="zeta", **facts)  # type: ignore[arg-type]


def ready() -> Bench:
    return Bench().boot().connect("beta", "gamma", "delta")


def adopt(alpha: Bench, made: Record, request: int = 3) -> list[f.Effect]:
    return alpha.done(e.Adopt(request, made, f.Kept(private(5))))


def answer(effects: list[f.Effect]) -> f.Answer:
    (found,) = only(effects, f.Answer)
    return found


def test_what_is_adopted_is_logged_told_and_offered_as_it_was_made() -> None:
    alpha, made = ready(), lost()
    out = adopt(alpha, made)
    assert [effect.entry.record for effect in only(out, f.Log)] == [made]
    assert answer(out).error == ""
    assert made in [r for _, rows in sent(out, m.RowsMessage) for r in rows.rows.records]
    assert made in [parcel.record for _, offer in sent(out, m.Offer) for parcel in offer.parcels]
    assert alpha.replica.debts.own_open()[0].record == made


def test_it_is_let_go_when_enough_others_have_it() -> None:
    alpha, made = ready(), lost()
    adopt(alpha, made)
    alpha.receipt("beta", made)
    out = alpha.receipt("gamma", made) + alpha.tick()
    for publish in only(alpha.effects, f.Publish):
        done = tuple((item.record, alpha.published_at(item)) for item in publish.items)
        out += alpha.done(e.Published(publish.op, done))
    assert f.Release((made,)) in out
    assert alpha.replica.ctx.adopted == {}


def test_after_a_crash_of_the_adopter_it_is_still_owed() -> None:
    alpha, made = ready(), lost()
    again = Bench(boot=2).boot((f.Entry(made, f.Kept(private(5))),)).connect("beta", "gamma")
    assert [debt.record for debt in again.replica.debts.own_open()] == [made]
    assert alpha.replica.debts.own_open() == []


def test_the_disk_of_a_node_that_is_alive_is_a_copy_and_refused_with_the_reason() -> None:
    alpha = ready().connect("zeta")
    out = adopt(alpha, lost())
    assert "zeta is alive: this disk is a copy of a running node's" in answer(out).error
    assert only(out, f.Log) == []


def test_our_own_disk_is_not_adopted() -> None:
    out = adopt(ready(), record(NAME, 5, origin="alpha"))
    assert "start the agent on that folder instead" in answer(out).error


def test_what_is_durable_already_is_answered_and_not_taken_again() -> None:
    made = lost()
    alpha = ready().has(made, holding("beta", 5), holding("gamma", 5))
    out = adopt(alpha, made)
    assert (answer(out).error, answer(out).durable, only(out, f.Log)) == ("", True, [])


def test_what_was_deleted_since_stays_deleted() -> None:
    from protocol.values import NO_DIGEST, State

    made = lost()
    grave = Record(NAME, made.hlc + 1, "beta", NO_DIGEST, NO_DIGEST, 0, state=State.DELETED)
    out = adopt(ready().has(grave), made)
    assert "was deleted since" in answer(out).error


@pytest.mark.parametrize("name", ["game/alpha/games/x.db", "fairy/x"])
def test_names_that_do_not_belong_to_the_origin_are_refused(name: str) -> None:
    out = adopt(ready(), record(name, 5, origin="zeta"))
    assert answer(out).error
    assert only(out, f.Log) == []


def test_an_adoption_that_does_not_reach_the_disk_is_refused_and_forgotten() -> None:
    alpha, made = ready(), lost()
    alpha.handle(e.Adopt(3, made, f.Kept(private(5))))
    out = alpha.fail()
    assert "was not adopted" in answer(out).error
    assert alpha.replica.ctx.adopted == {}
    assert fleet().host("zeta").name == "zeta"
    assert store_of("zeta") != alpha.store
