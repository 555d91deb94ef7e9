"""`spore sync`, one question at a time: what is offered and fetched at once, and how each artifact ends."""

from __future__ import annotations

import pytest

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.fleet import Host
from protocol.syncing import HOPELESS_MS, Item
from protocol.values import Record, State
from tests.replicas import Bench, fleet, holding, only, record, store_of

NUMBER = 9


def ready(*peers: str, **settings: object) -> Bench:
    alpha = Bench(of=fleet(**settings))
    alpha.boot()
    return alpha.connect(*peers)


def sync(alpha: Bench, *records: Record, to: str = "") -> list[f.Effect]:
    return alpha.done(e.Sync(NUMBER, records, to))


def items(alpha: Bench) -> list[tuple[bool, str]]:
    return [(item.ended, item.why) for item in alpha.replica.syncing.requests[NUMBER].items.values()]


def offers(effects: list[f.Effect], peer: str) -> list[m.Offer]:
    said = [x.message for x in only(effects, f.Send) if x.peer == peer]
    return [message for message in said if isinstance(message, m.Offer)]


def test_what_is_owed_and_was_refused_is_offered_again_at_once() -> None:
    alpha = ready("beta", "gamma")
    made = alpha.accepted("model/a", 1)
    (offer,) = offers(alpha.effects, "beta")
    alpha.hears("beta", m.Take(offer.transfer, ("the disk of beta is at its cap",), ((),)))
    effects = sync(alpha, made)
    assert [parcel.record for again in offers(effects, "beta") for parcel in again.parcels] == [made]
    assert items(alpha) == [(False, "being sent to beta, gamma")]
    alpha.receipt("beta", made, transfer=offers(effects, "beta")[0].transfer)
    alpha.receipt("gamma", made, transfer=offers(alpha.effects, "gamma")[0].transfer)
    assert items(alpha) == [(True, "")]


def test_what_policy_places_here_is_fetched_without_the_grace_of_a_push() -> None:
    alpha = ready("beta")
    made = record("model/a", 1)
    alpha.told("beta", made, holding("beta", 1))
    assert not [x for x in only(alpha.effects, f.Send) if isinstance(x.message, m.Ask)]
    effects = sync(alpha, made)
    assert [x.message.digests for x in only(effects, f.Send) if isinstance(x.message, m.Ask)] == [(made.digest,)]
    alpha.holds_from("beta", made)
    assert items(alpha) == [(True, "")]


def test_what_is_where_it_should_be_is_done_at_once() -> None:
    alpha = ready("beta")
    made = record("model/a", 1)
    alpha.told("beta", made, holding("beta", 1))
    alpha.holds_from("beta", made)
    sync(alpha, made)
    assert alpha.replica.syncing.requests[NUMBER].items[made.key] == Item(made, True, was_there=True, why="")


def test_a_copy_goes_to_a_node_that_policy_would_not_choose() -> None:
    alpha = ready("beta", "gamma", "delta", "epsilon")
    made = alpha.accepted("npz/a", 1)
    for peer in ("beta", "gamma", "delta", "epsilon"):
        for offer in offers(alpha.effects, peer):
            alpha.receipt(peer, made, transfer=offer.transfer)
    lacking = next(p for p in ("beta", "gamma", "delta", "epsilon") if not offers(alpha.effects, p))
    effects = sync(alpha, made, to=lacking)
    (offer,) = offers(effects, lacking)
    assert items(alpha) == [(False, f"being sent to {lacking}")]
    alpha.receipt(lacking, made, transfer=offer.transfer)
    assert items(alpha) == [(True, "")]


def test_a_refusal_of_the_node_is_the_last_word_and_a_passing_one_is_not() -> None:
    alpha = ready("beta")
    made = alpha.accepted("npz/a", 1)
    (first,) = offers(alpha.effects, "beta")
    alpha.receipt("beta", record("npz/other", 2), transfer=first.transfer)  # it did not arrive
    (offer,) = [x for x in offers(sync(alpha, made, to="beta"), "beta") if x.transfer != first.transfer][:1]
    alpha.hears("beta", m.Take(offer.transfer, (m.BUSY,), ((),)))
    assert items(alpha)[0][0] is False
    (again,) = offers(alpha.tick(6_000), "beta")[-1:]
    alpha.hears("beta", m.Take(again.transfer, ("beta is excluded from sync",), ((),)))
    assert items(alpha) == [(True, "beta: beta is excluded from sync")]


def test_a_node_that_is_down_or_bytes_that_are_not_here_are_said_at_once() -> None:
    alpha = ready("beta")
    made = alpha.accepted("npz/a", 1)
    sync(alpha, made, to="zeta")
    assert items(alpha) == [(True, "zeta is down")]
    elsewhere = record("npz/b", 2)
    alpha.told("beta", elsewhere, holding("gamma", 2))
    sync(alpha, elsewhere, to="beta")
    assert items(alpha) == [(True, "its bytes are not here; run this on a holder: gamma")]


def test_with_our_own_name_it_is_fetched_here_wherever_policy_would_place_it() -> None:
    alpha = ready("beta", "gamma", "delta", "epsilon")
    made = record("npz/a", 1)
    alpha.told("beta", made, *[holding(node, 1) for node in ("beta", "gamma", "delta", "epsilon")])
    effects = sync(alpha, made, to="alpha")
    assert only(effects, f.Reserve) or [x for x in only(effects, f.Send) if isinstance(x.message, m.Ask)]


def test_what_nobody_can_do_anything_for_ends_with_the_reason() -> None:
    alpha = ready()
    made = alpha.accepted("npz/a", 1)
    sync(alpha, made)
    for _ in range(HOPELESS_MS // 1_000 + 2):
        alpha.tick()
    ((ended, why),) = items(alpha)
    assert (ended, why) == (True, "only 0 eligible stores of the 2 needed are reachable")


def test_a_deleted_artifact_ends_and_a_request_that_is_cancelled_is_forgotten() -> None:
    alpha = ready("beta")
    made = record("npz/a", 1, state=State.DELETED)
    alpha.told("beta", made)
    sync(alpha, made)
    assert items(alpha) == [(True, "it was deleted")]
    alpha.handle(e.Cancel(NUMBER))
    assert alpha.replica.syncing.requests == {}


def test_hosts_of_a_higher_priority_are_offered_first_and_critical_ones_wait_for_nobody() -> None:
    of = fleet(
        Host("delta", address="delta:7946", sync_priority="critical"), Host("beta", "beta:7946", sync_priority="low")
    )
    alpha = Bench(of=of)
    alpha.boot()
    alpha.connect("beta", "gamma", "delta")
    alpha.accepted("model/a", 1)
    order = [x.peer for x in only(alpha.effects, f.Send) if isinstance(x.message, m.Offer)]
    assert order == sorted(order, key=["delta", "gamma", "beta"].index)


@pytest.mark.parametrize("store", [b"", store_of("gamma")])
def test_a_copy_in_the_store_of_the_node_is_enough(store: bytes) -> None:
    """A mate of its NFS group may have said so."""
    alpha = ready("beta", "gamma")
    made = alpha.accepted("npz/a", 1)
    alpha.told("beta", holding("gamma", 1, store=store))
    sync(alpha, made, to="gamma")
    assert items(alpha) == [(True, "")]
