"""The core in a swarm: what it answers to an offer to pull, what it says to whom, and what becomes of failures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.broadcasts import Bound, bound, broadcast_name, version_meta
from protocol.chunks import CHUNK_BYTES
from protocol.fleet import DEFAULT_KINDS, Host
from protocol.sending import PULL_MS_MAX
from protocol.swarming import HOPELESS_MS
from protocol.values import Parcel, Record, Stripe
from tests.replicas import Bench, fleet, holding, only, place, record, sent

CHUNKS = 8


def ready(*peers: str, **hosts: Any) -> Bench:
    return Bench(of=fleet(**hosts)).boot().connect(*peers)


def large(name: str, number: int, **facts: Any) -> Record:
    return replace(record(name, number, **facts), size=CHUNKS * CHUNK_BYTES)


def offered(alpha: Bench, peer: str, made: Record, transfer: int = 7) -> list[f.Effect]:
    return alpha.hears(peer, m.Offer(transfer, (Parcel(made),), pull=True))


def begun(alpha: Bench, peer: str, made: Record, missing: tuple[Stripe, ...] = ()) -> list[f.Effect]:
    """An offer to pull, and room for it: what follows."""
    (reserve,) = only(offered(alpha, peer, made), f.Reserve)
    assert reserve.peer == "alpha"
    return alpha.handle(e.Reserved("alpha", reserve.transfer, (missing,), ("",)))


def pulled_all(alpha: Bench, out: list[f.Effect]) -> list[f.Effect]:
    """Every pull brings its run, and those that follow; the effects after the last."""
    pulls = only(out, f.Pull)
    while pulls:
        out = alpha.handle(e.Pulled(pulls.pop(0).number))
        pulls += only(out, f.Pull)
    return out


# --- the receiver ---


def test_an_offer_to_pull_is_taken_by_fetching_and_ends_with_a_receipt() -> None:
    alpha, made = ready("beta"), large("model/a", 5)
    out = begun(alpha, "beta", made)
    assert sent(out, m.Take) == [("beta", m.Take(7, (m.FETCHING,), ((),)))]
    (publish,) = only(alpha.settle() + pulled_all(alpha, out) + alpha.settle(), f.Publish)
    out = alpha.done(e.Published(publish.op, ((made, place("a", 5)),)))
    ((peer, receipt),) = sent(out, m.Receipt)
    assert (peer, receipt.transfer, [h.digest for h in receipt.holdings]) == ("beta", 7, [made.digest])


def test_an_offer_for_which_there_is_no_room_is_refused_with_the_reason() -> None:
    alpha, made = ready("beta"), large("model/a", 5)
    (reserve,) = only(offered(alpha, "beta", made), f.Reserve)
    out = alpha.handle(e.Reserved("alpha", reserve.transfer, ((),), ("the disk is full",)))
    assert sent(out, m.Take) == [("beta", m.Take(7, ("the disk is full",), ((),)))]
    assert only(out, f.Pull) == []


def test_a_second_offer_of_what_is_being_fetched_is_another_source() -> None:
    alpha, made = ready("beta", "gamma"), large("model/a", 5)
    out = begun(alpha, "beta", made)
    again = offered(alpha, "gamma", made, 9)
    assert sent(again, m.Take) == [("gamma", m.Take(9, (m.FETCHING,), ((),)))]
    assert only(again, f.Reserve) == []
    out = alpha.handle(e.Pulled(only(out, f.Pull)[0].number))
    assert {pull.source for pull in only(out, f.Pull)} == {"beta", "gamma"}


def test_what_staging_has_is_not_pulled_again() -> None:
    alpha, made = ready("beta"), large("model/a", 5)
    out = begun(alpha, "beta", made, (Stripe(6, 1),))
    (pull,) = only(out, f.Pull)
    assert pull.run == Stripe(6, 1)
    assert only(alpha.handle(e.Pulled(pull.number)) + alpha.settle(), f.Publish)


def test_chunks_that_lay_here_under_another_name_are_not_pulled() -> None:
    alpha, made = ready("beta"), large("model/a", 5)
    (first,) = only(begun(alpha, "beta", made), f.Pull)
    out = alpha.handle(e.Pulled(first.number, missing=(Stripe(2, 1),)))
    assert [pull.run for pull in only(out, f.Pull)] == [Stripe(2, 1)]


def test_fetchers_of_the_same_bytes_tell_each_other_what_they_have() -> None:
    alpha, made = ready("beta", "gamma"), large("model/a", 5)
    (pull,) = only(begun(alpha, "beta", made), f.Pull)
    out = alpha.hears("beta", m.Fetchers(made.digest, ("gamma",)))
    asked = 1 << pull.run.first
    assert ("gamma", m.Pieces(made.digest, 0, asked)) in sent(out, m.Pieces)
    alpha.handle(e.Pulled(pull.number))
    alpha.now_ms += 1_000
    told = dict(sent(alpha.handle(e.Timer("swarm")), m.Pieces))
    assert told["gamma"].have == asked
    assert set(told) == {"beta", "gamma"}  # the source is told too, so that it waits for the receipt


def test_what_another_fetcher_has_is_pulled_from_it() -> None:
    alpha, made = ready("beta", "gamma"), large("model/a", 5)
    (pull,) = only(begun(alpha, "beta", made), f.Pull)
    alpha.hears("beta", m.Fetchers(made.digest, ("gamma",)))
    alpha.handle(e.Pulled(pull.number))
    theirs = 0xFF & ~(1 << pull.run.first)
    out = alpha.hears("gamma", m.Pieces(made.digest, theirs, 0))
    assert {p.source for p in only(out, f.Pull)} == {"gamma"}


def test_a_fetcher_that_dies_is_asked_no_more() -> None:
    alpha, made = ready("beta", "gamma"), large("model/a", 5)
    begun(alpha, "beta", made)
    alpha.hears("beta", m.Fetchers(made.digest, ("gamma",)))
    alpha.loses("gamma")
    swarm = alpha.replica.swarming.under_way[made.digest].swarm
    assert "gamma" not in swarm.fetchers
    assert "gamma" not in swarm.sources


def test_when_nobody_can_be_pulled_from_a_plain_fetch_is_tried_and_then_the_reason_told() -> None:
    alpha, made = ready("beta"), large("model/a", 5)
    pulls, out = only(begun(alpha, "beta", made), f.Pull), []
    for _ in range(600):
        for pull in pulls:
            out = alpha.handle(e.Pulled(pull.number, "the connection was refused"))
        out = alpha.tick(1_000)
        pulls = only(out, f.Pull)
        if only(out, f.Fetch):
            break
    (fetch,) = only(out, f.Fetch)
    assert fetch.sources == ("beta",)
    out = alpha.done(e.Arrived("alpha", fetch.transfer, (), ((made, "no way leads there"),)))
    ((peer, receipt),) = sent(out, m.Receipt)
    assert (peer, receipt.failed) == ("beta", ((made.digest, "no way leads there"),))


def test_a_source_that_lied_is_never_asked_again() -> None:
    alpha, made = ready("beta"), large("model/a", 5)
    (pull,) = only(begun(alpha, "beta", made), f.Pull)
    alpha.handle(e.Pulled(pull.number, "beta sent wrong bytes", lied=True))
    out = []
    for _ in range(HOPELESS_MS // 1_000 + 2):
        out += alpha.tick(1_000)
    assert only(out, f.Pull) == []
    assert len(only(out, f.Fetch)) == 1


def test_when_the_source_goes_a_push_that_nobody_wants_any_more_ends() -> None:
    """Its policy gives the receiver no copy of its own accord: the source will offer it again."""
    alpha = ready("beta", "gamma", "delta", "epsilon")
    made = next(
        candidate
        for candidate in (large("checkpoint/a", number) for number in range(5, 50))
        if not alpha.replica.receiving.policy.places_here(candidate)
    )
    (pull,) = only(begun(alpha, "beta", made), f.Pull)
    out = alpha.handle(e.SessionDown("beta", "it was killed"))
    assert f.CutPull(pull.number) in out
    assert made.digest not in alpha.replica.swarming.under_way


def test_when_the_source_goes_what_policy_wants_here_is_fetched_on() -> None:
    alpha, made = ready("beta", "gamma"), large("model/a", 5)  # broadcast: every node is to have it
    alpha.told("gamma", made)
    begun(alpha, "beta", made)
    alpha.hears("beta", m.Fetchers(made.digest, ("gamma",)))
    alpha.handle(e.SessionDown("beta", "it was killed"))
    out = alpha.hears("gamma", m.Pieces(made.digest, 0xFF, 0))
    assert made.digest in alpha.replica.swarming.under_way
    assert only(out, f.Pull) or alpha.replica.swarming.under_way[made.digest].swarm.sources["gamma"].seed


# --- the source ---


def test_a_large_artifact_is_offered_to_be_pulled_and_small_ones_are_not() -> None:
    alpha = ready("beta", "gamma")
    put = alpha.put("checkpoint/large", 5)
    out = alpha.done(replace(put, size=CHUNKS * CHUNK_BYTES))
    assert [message.pull for _, message in sent(out, m.Offer)] == [True, True]
    out = alpha.done(alpha.put("checkpoint/small", 6))
    assert [message.pull for _, message in sent(out, m.Offer)] == [False, False]


def test_who_cannot_be_dialled_offers_to_send() -> None:
    alpha = Bench(of=fleet(Host("alpha", address=None))).boot().connect("beta")
    out = alpha.done(replace(alpha.put("checkpoint/large", 5), size=CHUNKS * CHUNK_BYTES))
    assert [message.pull for _, message in sent(out, m.Offer)] == [False]


def offering(alpha: Bench) -> tuple[Record, dict[str, int]]:
    """A large artifact of ours, being fetched by beta and gamma; the numbers of its offers."""
    out = alpha.done(replace(alpha.put("checkpoint/large", 5), size=CHUNKS * CHUNK_BYTES))
    transfers = {peer: message.transfer for peer, message in sent(out, m.Offer)}
    for peer, transfer in transfers.items():
        out = alpha.hears(peer, m.Take(transfer, (m.FETCHING,), ((),)))
        assert only(out, f.Upload) == []
    ((made, _),) = [(debt.record, key) for key, debt in alpha.replica.debts.open.items()]
    return made, transfers


def test_holders_introduce_those_who_fetch_from_them() -> None:
    alpha = ready("beta", "gamma")
    made, _ = offering(alpha)
    assert sent(alpha.hears("beta", m.Pieces(made.digest, 0, 0)), m.Fetchers) == []
    out = alpha.hears("gamma", m.Pieces(made.digest, 0, 0))
    assert sent(out, m.Fetchers) == [
        ("gamma", m.Fetchers(made.digest, ("beta",))),
        ("beta", m.Fetchers(made.digest, ("gamma",))),
    ]
    assert sent(alpha.hears("gamma", m.Pieces(made.digest, 1, 0)), m.Fetchers) == []
    assert alpha.replica.swarming.bytes_of(made.digest, "gamma", made.size) == CHUNK_BYTES


def test_who_goes_on_fetching_is_waited_for_and_who_falls_silent_is_not() -> None:
    alpha = ready("beta", "gamma", "delta")
    made, transfers = offering(alpha)
    silent, other = sorted(transfers)
    out = []
    for _ in range(PULL_MS_MAX // 1_000 + 5):
        alpha.hears(other, m.Pieces(made.digest, 1, 2))
        out += alpha.tick(1_000)
    assert {peer for peer, _ in sent(out, m.Offer)} == {"beta", "gamma", "delta"} - transfers.keys()
    assert any(report.event == "push_failed" and silent in report.message for report in only(out, f.Report))


def test_receipts_of_those_who_pulled_make_it_durable() -> None:
    alpha = ready("beta", "gamma")
    made, transfers = offering(alpha)
    for peer, transfer in transfers.items():
        assert alpha.replica.debts.open
        alpha.receipt(peer, made, transfer=transfer)
    assert not alpha.replica.debts.open


# --- broadcasts ---


def declared(made: Record, origin: str = "beta") -> Record:
    return Record(broadcast_name(made.name), made.hlc + 1, origin, bytes(32), bytes(32), 0, meta=version_meta(made))


def test_a_broadcast_version_is_fetched_by_every_node_whatever_the_strategy() -> None:
    kinds = tuple(replace(kind, strategy="pull") for kind in DEFAULT_KINDS)
    alpha = ready("beta", kinds=kinds)
    made = large("checkpoint/a", 5)
    alpha.told("beta", made, holding("beta", 5))
    assert only(alpha.tick(5_000), f.Reserve) == []
    alpha.told("beta", declared(made))
    assert [r.parcels[0].record for r in only(alpha.tick(5_000), f.Reserve)] == [made]


def test_another_version_than_the_broadcast_one_is_not() -> None:
    kinds = tuple(replace(kind, strategy="pull") for kind in DEFAULT_KINDS)
    alpha = ready("beta", kinds=kinds)
    old, new = large("checkpoint/a", 5), large("checkpoint/a", 6, at_ms=1_760_000_000_500)
    alpha.told("beta", old, new, declared(old), holding("beta", 5), holding("beta", 6))
    policy = alpha.replica.receiving.policy
    assert policy.wants(old)
    assert not policy.wants(new)


def test_a_broadcast_keeps_to_the_roles_of_its_kind() -> None:
    kinds = tuple(replace(kind, strategy="pull", roles=("training",)) for kind in DEFAULT_KINDS)
    alpha, made = ready("beta", kinds=kinds), large("checkpoint/a", 5)
    alpha.told("beta", made, declared(made))
    assert not alpha.replica.receiving.policy.wants(made)


def test_the_least_time_is_that_of_the_source_or_of_all_uplinks_together() -> None:
    assert bound(100, {"a": 10, "b": 100, "c": 100}, "a", 2).seconds == 10
    assert bound(100, {"a": 100, "b": 10, "c": 10}, "a", 2) == Bound(
        200 / 120, "all uplinks together, 0.00012 MB/s, of which b has the least"
    )
    assert bound(100, {"a": 10, "b": None}, "a", 1).seconds == 10
    assert bound(100, {"a": None, "b": None}, "a", 1) == Bound(0.0, "")
