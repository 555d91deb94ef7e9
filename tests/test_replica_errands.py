"""Bytes that only a holder has whom nobody can dial, and offers that cannot be uploaded to their receiver."""

from __future__ import annotations

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.fleet import Host
from protocol.incoming import ALONE_MS
from protocol.receiving import PUSH_GRACE_MS
from protocol.sending import RECEIPT_MS_MAX
from protocol.values import Parcel, Record
from tests.replicas import Bench, fleet, holding, only, record

EXCLUDED = fleet(Host("alpha", address="alpha:7946", excluded=True), Host("beta"))


def carrying(excluded: bool = True) -> tuple[Bench, Record]:
    """A node that can be dialled, and knows of an artifact on beta, which cannot: its session stands."""
    alpha = Bench(of=EXCLUDED if excluded else fleet(Host("beta")))
    alpha.boot()
    alpha.connect("beta", address="")
    made = record("model/a", 1)
    alpha.told("beta", made, holding("beta", 1))
    return alpha, made


def asked_of_beta(alpha: Bench, made: Record) -> m.Ask:
    """The question that a Want leads to."""
    (send,) = [x for x in only(alpha.handle(e.Want(7, made)), f.Send) if isinstance(x.message, m.Ask)]
    assert send.peer == "beta"
    assert isinstance(send.message, m.Ask)
    return send.message


def uploaded(alpha: Bench, made: Record, answers: int, *failed: tuple[Record, str]) -> list[f.Effect]:
    """beta offers and uploads; what follows from the arrival."""
    (reserve,) = only(alpha.hears("beta", m.Offer(5, (Parcel(made),), answers)), f.Reserve)
    alpha.handle(e.Reserved("beta", reserve.transfer, ((),), ("",)))
    complete = () if failed else (made,)
    return alpha.handle(e.Arrived("beta", 5, complete, failed))


def test_a_holder_that_cannot_be_dialled_is_asked_for_an_upload_and_the_waiter_is_answered() -> None:
    alpha, made = carrying()
    ask = asked_of_beta(alpha, made)
    assert ask.digests == (made.digest,)
    effects = uploaded(alpha, made, ask.transfer)
    assert only(effects, f.Answer) == [f.Answer(7, "", made)]


def test_an_excluded_node_carries_it_and_publishes_nothing() -> None:
    alpha, made = carrying()
    effects = uploaded(alpha, made, asked_of_beta(alpha, made).transfer)
    assert only(effects, f.Publish) == only(effects, f.Commit) == []
    assert only(effects, f.Unreserve) == [f.Unreserve("beta", 5)]
    (receipt,) = [x.message for x in only(effects, f.Send) if isinstance(x.message, m.Receipt)]
    assert receipt.holdings == ()


def test_an_excluded_node_takes_no_other_offer() -> None:
    alpha, made = carrying()
    (take,) = [x.message for x in only(alpha.hears("beta", m.Offer(5, (Parcel(made),))), f.Send)]
    assert take == m.Take(5, ("alpha is excluded from sync",), ((),))


def test_a_failed_upload_is_told_to_whom_it_concerns() -> None:
    alpha, made = carrying()
    effects = uploaded(alpha, made, asked_of_beta(alpha, made).transfer, (made, "it was changed"))
    assert only(effects, f.Answer) == [f.Answer(7, "model/a could not be fetched: it was changed", made)]


def test_nobody_waits_for_an_upload_for_ever() -> None:
    alpha, made = carrying()
    asked_of_beta(alpha, made)
    (answer,) = only(alpha.tick(RECEIPT_MS_MAX + 1_000), f.Answer)
    assert answer.error == "model/a could not be fetched: beta did not upload it in time"


def test_a_session_that_ends_ends_the_errand() -> None:
    alpha, made = carrying()
    asked_of_beta(alpha, made)
    (answer,) = only(alpha.handle(e.SessionDown("beta", "gone")), f.Answer)
    assert answer.error == "model/a could not be fetched: the session with beta ended"


def test_a_fetch_that_failed_is_tried_once_more_as_an_upload() -> None:
    alpha = Bench(of=EXCLUDED)
    alpha.boot()
    alpha.connect("beta")
    made = record("model/a", 1)
    alpha.told("beta", made, holding("beta", 1))
    (reserve,) = only(alpha.handle(e.Want(7, made, direct=True)), f.Reserve)
    (fetch,) = only(alpha.handle(e.Reserved("alpha", reserve.transfer, ((),), ("",))), f.Fetch)
    assert fetch.direct
    effects = alpha.handle(e.Arrived("alpha", reserve.transfer, (), ((made, "beta cannot be reached"),)))
    assert only(effects, f.Answer) == []
    assert [x.message.digests for x in only(effects, f.Send) if isinstance(x.message, m.Ask)] == [(made.digest,)]


def test_a_receiver_that_cannot_be_dialled_is_told_to_fetch() -> None:
    alpha = Bench(of=fleet())
    alpha.boot()
    alpha.connect("beta", "gamma")
    alpha.accepted("model/a", 1)
    offers = [x.message for x in alpha.effects if isinstance(x, f.Send) and x.peer == "beta"]
    (offer,) = [message for message in offers if isinstance(message, m.Offer)]
    alpha.hears("beta", m.Take(offer.transfer, ("",), ((),)))
    effects = alpha.handle(e.Uploaded(offer.transfer, "beta cannot be reached", unreachable=True))
    assert f.Send("beta", m.Unreachable(offer.transfer)) in effects


def test_whoever_is_told_to_fetch_does_so_at_once_and_gives_the_room_back() -> None:
    alpha = Bench()
    alpha.boot()
    alpha.connect("beta")
    made = record("model/a", 1)
    (reserve,) = only(alpha.hears("beta", m.Offer(5, (Parcel(made),))), f.Reserve)
    alpha.handle(e.Reserved("beta", reserve.transfer, ((),), ("",)))
    effects = alpha.hears("beta", m.Unreachable(5))
    assert f.Unreserve("beta", 5) in effects
    (own,) = only(effects, f.Reserve)
    (fetch,) = only(alpha.handle(e.Reserved("alpha", own.transfer, ((),), ("",))), f.Fetch)
    assert (fetch.record, fetch.sources) == (made, ("beta",))
    assert alpha.hears("beta", m.Unreachable(6)) == []


def test_a_small_artifact_is_fetched_when_no_holder_has_a_session() -> None:
    alpha = Bench()
    alpha.boot()
    alpha.connect("beta", "gamma")
    made = record("model/a", 1)
    alpha.told("gamma", made, holding("beta", 1))
    alpha.handle(e.SessionDown("beta", "gone"))
    waited = alpha.tick(PUSH_GRACE_MS + 1_000)
    assert only(waited, f.Reserve) == []
    assert only(alpha.tick(ALONE_MS + 1_000), f.Reserve)
