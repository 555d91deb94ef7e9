"""The replica pushes: offers to two stores, the next one when one refuses; only receipts for a digest count."""

from dataclasses import replace
from typing import Any

import pytest

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.debts import Debt
from protocol.fleet import Bandwidth, Host, Kind, Routing
from protocol.membership import REPAIR_GRACE_MS
from protocol.sending import (
    ASKED_PER_PEER,
    BATCH_COUNT,
    BUSY_MS,
    OFFERS_PER_PEER,
    RECEIPT_MS_MAX,
    REFUSED_MS,
    SMALL_BYTES,
    TAKE_MS_MAX,
)
from protocol.sweeping import FIRST_MS
from protocol.values import Holding, Parcel, Record, Stripe
from tests.replicas import Bench, digest, fleet, holding, member, only, place, private, record, sent, store_of

NAME = "checkpoint/checkpoints/step-5"


def ready(*peers: str, **facts: Any) -> Bench:
    return Bench(**facts).boot().connect(*(peers or ("beta", "gamma", "delta")))


def offers(effects: list[f.Effect]) -> list[tuple[str, tuple[Record, ...]]]:
    return [(peer, tuple(p.record for p in offer.parcels)) for peer, offer in sent(effects, m.Offer)]


def transfer_to(alpha: Bench, peer: str) -> int:
    """The number of the last offer to a peer."""
    return [offer.transfer for to, offer in sent(alpha.effects, m.Offer) if to == peer][-1]  # type: ignore[no-any-return]


def offered_to(alpha: Bench, made: Record) -> list[str]:
    """Whom a version was offered to, in order, once each time."""
    return [peer for peer, records in offers(alpha.effects) if made in records]


def refuse(alpha: Bench, peer: str, why: str) -> list[f.Effect]:
    return alpha.done(e.Received(peer, m.Take(transfer_to(alpha, peer), (why,), ((),))))


def take(alpha: Bench, peer: str, *missing: tuple[Stripe, ...]) -> list[f.Effect]:
    gaps = missing or ((),)
    return alpha.hears(peer, m.Take(transfer_to(alpha, peer), ("",) * len(gaps), gaps))


def debt_of(alpha: Bench, made: Record) -> Debt | None:
    return alpha.replica.debts.open.get(made.key)


# --- from the offer to the receipt ---


def test_a_new_artifact_is_offered_to_two_stores_and_no_more() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    assert len(offered_to(alpha, made)) == 2
    assert alpha.tick() is not None
    assert len(offered_to(alpha, made)) == 2


def test_a_take_starts_one_upload_of_what_is_missing() -> None:
    alpha = ready("beta")
    made = alpha.accepted(NAME, 5)
    missing = (Stripe(3, 2),)
    assert take(alpha, "beta", missing) == [f.Upload(transfer_to(alpha, "beta"), "beta", (Parcel(made, missing),))]
    assert take(alpha, "beta", missing) == []  # said twice


def test_the_receipts_of_two_stores_settle_it_and_release_its_log_entry() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    first, second = offered_to(alpha, made)
    assert only(alpha.receipt(first, made), f.Release) == []
    assert debt_of(alpha, made) is not None
    out = alpha.receipt(second, made)
    assert only(out, f.Release) == [f.Release((made,))]
    assert debt_of(alpha, made) is None


def test_a_receipt_counts_only_once_it_is_committed_here() -> None:
    alpha = ready("beta")
    made = alpha.accepted("npz/training/a", 5, wait_copies=1, request=3)
    stated = Holding("beta", store_of("beta"), made.digest, 1)
    assert only(alpha.hears("beta", m.Receipt(transfer_to(alpha, "beta"), (stated,))), f.Answer) == []
    assert [answer.durable for answer in only(alpha.settle(), f.Answer)] == [True]


def test_the_end_of_an_upload_promises_nothing() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    for peer in offered_to(alpha, made):
        take(alpha, peer)
        assert alpha.done(e.Uploaded(transfer_to(alpha, peer), "")) == []
    assert debt_of(alpha, made) is not None
    assert only(alpha.effects, f.Release) == []


def test_a_receipt_for_an_older_digest_of_the_same_name_counts_for_nothing() -> None:
    """Receipts counted by path: a database that had grown since its receipt counted as safe."""
    alpha = ready()
    older, newer = alpha.accepted(NAME, 5), alpha.accepted(NAME, 6)
    for peer in ("beta", "gamma"):
        alpha.receipt(peer, older)
    debt = debt_of(alpha, newer)
    assert debt is not None
    assert debt.receipts == {}


def test_the_same_bytes_under_two_names_are_sent_to_each_store_once_and_settle_both() -> None:
    alpha = ready()
    one, other = alpha.accepted(NAME, 5), alpha.accepted("model/models/x", 5)
    for peer in ("beta", "gamma"):
        alpha.receipt(peer, one)
    assert debt_of(alpha, one) is None
    assert debt_of(alpha, other) is None


def test_two_nodes_of_one_store_are_one_receipt() -> None:
    alpha = ready("gamma").connect("beta", "delta", store=store_of("nfs"))
    made = alpha.accepted(NAME, 5)
    for node in ("beta", "delta"):
        alpha.told(node, holding(node, 5, store=store_of("nfs")))
    debt = debt_of(alpha, made)
    assert debt is not None
    assert list(debt.receipts) == [store_of("nfs")]
    alpha.receipt("gamma", made)
    assert debt_of(alpha, made) is None


def test_the_mate_that_shares_our_store_is_neither_asked_nor_counted() -> None:
    of = fleet(*(Host(name, address=f"{name}:7946", nfs_group="alpha") for name in ("alpha", "beta")))
    alpha = Bench(of=of, store=store_of("nfs")).boot().connect("beta", store=store_of("nfs")).connect("gamma")
    made = alpha.accepted(NAME, 5)
    assert offered_to(alpha, made) == ["gamma"]
    alpha.told("beta", holding("beta", 5, store=store_of("nfs")))
    debt = debt_of(alpha, made)
    assert debt is not None
    assert debt.receipts == {}


def test_a_receipt_that_is_withdrawn_no_longer_counts_and_the_next_store_is_asked() -> None:
    alpha = ready("beta", "gamma", "delta")
    made = alpha.accepted(NAME, 5)
    first, second = offered_to(alpha, made)
    alpha.receipt(first, made)
    out = alpha.told(first, holding(first, 5, seq=alpha.now_ms << 17, present=False))
    debt = debt_of(alpha, made)
    assert debt is not None
    assert debt.receipts == {}
    assert [peer for peer, _ in offers(out)] != [second]
    assert len(offers(out)) == 1


def test_when_one_of_a_shared_store_withdraws_and_the_other_does_not_the_copy_counts() -> None:
    alpha = ready("gamma").connect("beta", "delta", store=store_of("nfs"))
    made = alpha.accepted(NAME, 5)
    for node in ("beta", "delta"):
        alpha.told(node, holding(node, 5, store=store_of("nfs")))
    alpha.told("beta", holding("beta", 5, seq=alpha.now_ms << 17, present=False, store=store_of("nfs")))
    debt = debt_of(alpha, made)
    assert debt is not None
    assert list(debt.receipts) == [store_of("nfs")]


# --- who is asked ---


def test_persistent_stores_are_asked_before_ephemeral_ones() -> None:
    alpha = ready("delta", "epsilon").connect("beta", "gamma", ephemeral=True)
    made = alpha.accepted(NAME, 5)
    assert sorted(offered_to(alpha, made)) == ["delta", "epsilon"]


def test_ephemeral_stores_serve_where_there_are_too_few_others() -> None:
    alpha = ready("delta").connect("beta", ephemeral=True)
    made = alpha.accepted(NAME, 5)
    assert sorted(offered_to(alpha, made)) == ["beta", "delta"]
    alpha.receipt("beta", made)
    alpha.receipt("delta", made)
    assert debt_of(alpha, made) is None


def test_a_persistent_store_that_comes_later_is_asked_although_an_ephemeral_one_has_a_copy() -> None:
    """The ephemeral receipt no longer counts then: it must not hold the seat of one that would."""
    alpha = ready("delta").connect("beta", ephemeral=True)
    made = alpha.accepted(NAME, 5)
    alpha.receipt("beta", made)
    alpha.connect("gamma")
    alpha.receipt("delta", made)
    assert offered_to(alpha, made)[-1] == "gamma"
    alpha.receipt("gamma", made)
    assert debt_of(alpha, made) is None


@pytest.mark.parametrize("facts", [{"accepting": False}, {"excluded": True}, {"store": store_of("alpha")}])
def test_who_cannot_hold_is_never_asked(facts: dict[str, Any]) -> None:
    alpha = ready("gamma").connect("beta", **facts)
    made = alpha.accepted(NAME, 5)
    alpha.tick(10_000)
    assert offered_to(alpha, made) == ["gamma"]


def test_two_domains_are_used_when_there_are_two() -> None:
    alpha = ready("beta", "gamma", "delta").connect("zeta", domain="elsewhere")
    for number in range(10):
        made = alpha.accepted(f"{NAME}{number}", number + 10)
        chosen = offered_to(alpha, made)
        assert len(chosen) == 2
        assert "zeta" in chosen
        for peer in chosen:
            alpha.receipt(peer, made, transfer=transfer_to(alpha, peer))


def test_a_node_that_begins_to_accept_is_asked_for_what_is_still_owed() -> None:
    alpha = ready("beta").connect("gamma", accepting=False)
    made = alpha.accepted(NAME, 5)
    alpha.told("gamma", replace(member("gamma"), seq=alpha.now_ms << 17))
    assert offered_to(alpha, made) == ["beta", "gamma"]


def test_with_nobody_there_it_stays_at_risk_and_is_offered_to_who_comes() -> None:
    alpha = Bench().boot()
    made = alpha.accepted(NAME, 5)
    alpha.tick()
    assert offered_to(alpha, made) == []
    alpha.connect("beta")
    assert offered_to(alpha, made) == ["beta"]
    alpha.connect("gamma")
    assert offered_to(alpha, made) == ["beta", "gamma"]


def test_the_kind_says_how_many_copies_are_owed() -> None:
    kinds = (Kind("triple", min_copies=3), Kind("single", min_copies=1))
    alpha = ready("beta", "gamma", "delta", "epsilon", of=fleet(kinds=kinds))
    assert len(offered_to(alpha, alpha.accepted("triple/x", 5))) == 3
    assert len(offered_to(alpha, alpha.accepted("single/x", 6))) == 1


# --- refusals and failures ---


def test_a_refusal_sends_it_to_the_next_store_at_once() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    first, _ = offered_to(alpha, made)
    out = refuse(alpha, first, "the disk of it is at its cap")
    (next_one,) = {"beta", "gamma", "delta"} - set(offered_to(alpha, made)[:2])
    assert [peer for peer, _ in offers(out)] == [next_one]


def test_who_refused_is_asked_again_later_and_not_before() -> None:
    alpha = ready("beta")
    made = alpha.accepted(NAME, 5)
    refuse(alpha, "beta", "the disk of beta is at its cap")
    alpha.tick(REFUSED_MS - 1)
    assert offered_to(alpha, made) == ["beta"]
    alpha.tick(1)
    assert offered_to(alpha, made) == ["beta", "beta"]


def test_a_busy_store_is_asked_again_soon_and_keeps_its_seat() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    first, second = offered_to(alpha, made)
    assert offers(refuse(alpha, first, m.BUSY)) == []
    alpha.tick(BUSY_MS)
    assert offered_to(alpha, made) == [first, second, first]


def test_a_store_that_has_it_already_says_so_and_counts_once_its_statement_is_here() -> None:
    alpha = ready("beta", "gamma")
    made = alpha.accepted(NAME, 5)
    refuse(alpha, "beta", m.HAVE)
    alpha.told("beta", holding("beta", 5))
    alpha.receipt("gamma", made)
    assert debt_of(alpha, made) is None
    assert offered_to(alpha, made) == ["beta", "gamma"]


def test_what_a_receipt_leaves_out_is_offered_to_the_next_store() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    first, _ = offered_to(alpha, made)
    take(alpha, first)
    transfer = transfer_to(alpha, first)
    out = alpha.done(e.Received(first, m.Receipt(transfer, (), ((made.digest, "wrong bytes arrived"),))))
    assert len(offers(out)) == 1
    assert offers(out)[0][0] not in offered_to(alpha, made)[:2]


def test_one_failure_in_a_batch_leaves_the_others_delivered() -> None:
    """The log of pending work was cleared after any item succeeded."""
    alpha = ready("beta", "gamma")
    alpha.handle(alpha.put("checkpoint/a", 5))
    alpha.handle(alpha.put("checkpoint/b", 6))
    alpha.settle()
    one, other = alpha.replica.ctx.current("checkpoint/a"), alpha.replica.ctx.current("checkpoint/b")
    assert one is not None
    assert other is not None
    for peer in ("beta", "gamma"):
        transfer = transfer_to(alpha, peer)
        alpha.hears(peer, m.Take(transfer, ("", ""), ((), ())))
        alpha.receipt(peer, one, transfer=transfer)
    assert debt_of(alpha, one) is None
    left = debt_of(alpha, other)
    assert left is not None
    assert left.receipts == {}
    assert [r for release in only(alpha.effects, f.Release) for r in release.records] == [one]


def test_an_upload_that_breaks_off_is_reported_and_goes_elsewhere() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    first, _ = offered_to(alpha, made)
    take(alpha, first)
    out = alpha.done(e.Uploaded(transfer_to(alpha, first), "connection reset"))
    assert [report.event for report in only(out, f.Report)] == ["push_failed"]
    assert len(offers(out)) == 1


@pytest.mark.parametrize("taken", [False, True])
def test_an_offer_that_is_never_answered_is_given_up(taken: bool) -> None:
    alpha = ready("beta")
    made = alpha.accepted(NAME, 5)
    if taken:
        take(alpha, "beta")
        alpha.done(e.Uploaded(transfer_to(alpha, "beta"), ""))
    patience = RECEIPT_MS_MAX if taken else TAKE_MS_MAX
    assert only(alpha.tick(patience - 1), f.Report) == []
    assert [report.event for report in only(alpha.tick(1), f.Report)] == ["push_failed"]
    alpha.tick(REFUSED_MS)
    assert offered_to(alpha, made) == ["beta", "beta"]


def test_the_end_of_a_session_sends_what_it_had_to_the_next_store() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    first, _ = offered_to(alpha, made)
    take(alpha, first)
    out = alpha.done(e.SessionDown(first, "it was killed"))
    assert len(offers(out)) == 1
    assert offers(out)[0][0] not in offered_to(alpha, made)[:2]


def test_the_end_of_the_only_session_leaves_it_at_risk_until_it_is_back() -> None:
    alpha = ready("beta")
    made = alpha.accepted(NAME, 5)
    alpha.loses("beta")
    alpha.tick()
    debt = debt_of(alpha, made)
    assert debt is not None
    assert "eligible stores" in debt.why(alpha.replica.debts.pool_of(made))
    alpha.connect("beta")
    assert offered_to(alpha, made) == ["beta", "beta"]


def test_a_goodbye_is_the_end_of_a_session() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    first, _ = offered_to(alpha, made)
    out = alpha.done(e.Received(first, m.Goodbye("nothing at risk")))
    assert f.Hangup(first, "it said goodbye") in out
    assert len(offers(out)) == 1


def test_two_copies_lost_with_their_sessions_are_still_two_copies() -> None:
    """A node that is away keeps what it has: nothing is sent again because a session ended."""
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    for peer in offered_to(alpha, made):
        alpha.receipt(peer, made)
    for peer in ("beta", "gamma"):
        alpha.loses(peer)
    alpha.tick()
    assert len(offered_to(alpha, made)) == 2


def without_its_copies(alpha: Bench) -> Record:
    """Of an artifact of ours that beta and gamma have, both are killed; delta is there and may have it too."""
    made = alpha.accepted(NAME, 5)
    for peer in offered_to(alpha, made):
        alpha.receipt(peer, made)
    alpha.connect("delta", "epsilon")
    for peer in ("beta", "gamma"):
        alpha.loses(peer)
    return made


def swept(alpha: Bench, made: Record) -> list[str]:
    """Whom a sweep over this record makes us offer it to."""
    alpha.tick()
    scan = only(alpha.effects, f.Scan)[-1]
    page = ((made, alpha.catalogue.holdings(made.digest)),)
    return [peer for peer, _ in sent(alpha.done(e.Scanned(scan.op, page, last=True)), m.Offer)]


def test_copies_of_nodes_that_are_away_for_long_are_made_anew() -> None:
    alpha = ready("beta", "gamma")
    made = without_its_copies(alpha)
    alpha.now_ms += REPAIR_GRACE_MS
    assert sorted(swept(alpha, made)) == ["delta", "epsilon"]
    assert list(alpha.replica.debts.open) == [made.key]


def test_copies_of_nodes_that_left_are_made_anew_at_the_next_sweep() -> None:
    alpha = ready().connect("delta", "epsilon")
    made = alpha.accepted(NAME, 5)
    targets = offered_to(alpha, made)
    for peer in targets:
        alpha.receipt(peer, made)
    for peer in targets:
        alpha.hears(peer, m.Goodbye("nothing at risk"))
    alpha.now_ms += FIRST_MS
    assert sorted(swept(alpha, made)) == sorted({"beta", "gamma", "delta", "epsilon"} - set(targets))


def test_a_copy_of_a_dead_node_counts_while_a_mate_of_its_store_is_there() -> None:
    nfs = store_of("nfs")
    alpha = Bench().boot().connect("beta", "gamma", store=nfs).connect("delta")
    made = alpha.accepted(NAME, 5)
    alpha.done(e.Received("beta", m.Receipt(0, (Holding("beta", nfs, made.digest, 1 << 60),))))
    alpha.receipt("delta", made)
    alpha.loses("beta")
    alpha.now_ms += REPAIR_GRACE_MS
    assert len(alpha.replica.debts.receipts(made)) == 2
    assert swept(alpha, made) == []


def test_what_was_owed_because_its_copies_were_away_is_settled_when_they_are_back() -> None:
    alpha = ready("beta", "gamma")
    made = without_its_copies(alpha)
    alpha.now_ms += REPAIR_GRACE_MS
    swept(alpha, made)
    alpha.connect("beta", "gamma")
    assert alpha.replica.debts.open == {}


def test_a_wait_counts_the_copies_of_nodes_that_are_there_and_is_answered_when_they_are_back() -> None:
    alpha = ready("beta", "gamma")
    without_its_copies(alpha)
    alpha.now_ms += REPAIR_GRACE_MS
    assert only(alpha.done(e.Await(9, NAME, 2, 0, alpha.now_ms + 60_000)), f.Answer) == []
    before = len(alpha.effects)
    alpha.connect("beta", "gamma")
    (answer,) = only(alpha.effects[before:], f.Answer)
    assert (answer.request, answer.error, answer.copies) == (9, "", 2)


def test_a_peer_that_comes_to_many_debts_is_planned_for_in_bounded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.sending.REPLANS_PER_TICK", 3)
    alpha = Bench().boot()
    made = [alpha.accepted(f"npz/{number}", number) for number in range(1, 8)]
    alpha.connect("beta")
    offered = [[r for to, records in offers(alpha.effects) for r in records if to == "beta"]]
    while len(offered) < 4:
        offered.append([r for _, records in offers(alpha.tick()) for r in records])
    assert [len(records) for records in offered] == [3, 3, 1, 0]
    assert sorted(r.name for records in offered for r in records) == sorted(r.name for r in made)


def test_debts_that_a_new_hosts_file_settles_are_settled_in_bounded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.debts.RECOUNTS_PER_TICK", 3)
    alpha = ready("beta", "gamma")
    for number in range(1, 8):
        alpha.receipt("beta", alpha.accepted(f"npz/{number}", number))
    alpha.done(e.FleetChanged(fleet(routing=Routing(min_copies=1))))
    left = [len(alpha.replica.debts.open)]
    while left[-1]:
        alpha.tick()
        left.append(len(alpha.replica.debts.open))
    assert left == [4, 1, 0]


# --- late and unknown answers ---


@pytest.mark.parametrize(
    "message",
    [
        m.Take(99, ("",), ((),)),
        m.Take(99, (), ()),
        m.Receipt(99, ()),
        m.Receipt(99, (), ((digest(1), "why"),)),
    ],
)
def test_an_answer_to_an_unknown_transfer_changes_nothing(message: m.Message) -> None:
    alpha = ready()
    alpha.accepted(NAME, 5)
    assert alpha.done(e.Received("beta", message)) == []


def test_a_take_from_another_than_was_offered_changes_nothing() -> None:
    alpha = ready("beta")
    alpha.accepted(NAME, 5)
    alpha.connect("gamma")
    assert alpha.hears("gamma", m.Take(transfer_to(alpha, "beta"), ("",), ((),))) == []


def test_a_take_of_another_length_than_the_offer_changes_nothing() -> None:
    alpha = ready("beta")
    alpha.accepted(NAME, 5)
    assert alpha.hears("beta", m.Take(transfer_to(alpha, "beta"), ("", ""), ((), ()))) == []


def test_the_end_of_an_unknown_upload_changes_nothing() -> None:
    alpha = ready()
    assert alpha.done(e.Uploaded(99, "")) == []
    assert alpha.done(e.Uploaded(99, "broken")) == []


def test_an_answer_of_an_ended_session_is_void() -> None:
    alpha = ready("beta")
    alpha.accepted(NAME, 5)
    alpha.done(e.SessionDown("beta", "gone"))
    assert take(alpha, "beta") == []


def test_transfers_of_two_lives_never_share_a_number() -> None:
    numbers = []
    for boot in (1, 2):
        alpha = ready("beta", boot=boot)
        alpha.accepted(NAME, 5)
        numbers.append(transfer_to(alpha, "beta"))
    assert numbers[0] != numbers[1]


# --- batches ---


def put_sized(alpha: Bench, name: str, number: int, size: int) -> Record:
    out = alpha.done(replace(alpha.put(name, number), size=size))
    return only(out, f.Log)[0].entry.record


def test_many_small_artifacts_travel_in_one_offer() -> None:
    alpha = ready("beta")
    for number in range(BATCH_COUNT + 10):
        alpha.handle(alpha.put(f"checkpoint/{number}", number + 10))
    assert [len(records) for _, records in offers(alpha.settle())] == [BATCH_COUNT, 10]


def test_offers_to_one_peer_are_bounded_and_go_on_when_one_ends() -> None:
    alpha = ready("beta")
    made = [alpha.accepted(f"checkpoint/{number}", number + 10) for number in range(OFFERS_PER_PEER + 3)]
    assert len(offers(alpha.effects)) == OFFERS_PER_PEER
    (first, _), *_ = [(offer.transfer, peer) for peer, offer in sent(alpha.effects, m.Offer)]
    out = alpha.receipt("beta", made[0], transfer=first)
    assert offers(out) == [("beta", tuple(made[OFFERS_PER_PEER:]))]


def test_a_large_artifact_travels_alone_and_leaves_room_for_small_ones() -> None:
    alpha = ready("beta")
    big = [put_sized(alpha, f"checkpoint/big-{number}", number + 10, SMALL_BYTES + 1) for number in range(4)]
    small = alpha.accepted("checkpoint/small", 5)
    assert offers(alpha.effects) == [("beta", (big[0],)), ("beta", (big[1],)), ("beta", (small,))]


def test_one_transfer_at_a_time_is_kept_where_the_hosts_file_says_so() -> None:
    routing = Routing(max_concurrent_syncs=1, bandwidth_limit=Bandwidth(None))
    alpha = ready("beta", of=fleet(routing=routing))
    for number in range(3):
        put_sized(alpha, f"checkpoint/big-{number}", number + 10, SMALL_BYTES + 1)
    assert len(offers(alpha.effects)) == 1


# --- asking ---


def test_an_ask_is_answered_with_an_offer_of_what_is_held() -> None:
    here, gone = record("npz/training/a", 5), record("npz/training/b", 6)
    alpha = ready().has(here, gone, holding("alpha", 5), places=[place("training/a", 5)])
    out = alpha.hears("beta", m.Ask(44, (digest(5), digest(6), digest(7))))
    assert [(peer, offer.parcels, offer.answers) for peer, offer in sent(out, m.Offer)] == [
        ("beta", (Parcel(here),), 44)
    ]
    assert len(out) == 1
    (upload,) = take(alpha, "beta")
    assert isinstance(upload, f.Upload)


def test_an_ask_for_nothing_that_is_here_is_not_answered() -> None:
    assert ready().hears("beta", m.Ask(44, (digest(5),))) == []


def test_asks_are_answered_with_a_bounded_number_of_offers() -> None:
    """A peer that asks for everything again and again must not fill our account of them."""
    records = [
        replace(record(f"npz/training/{number}", number), size=SMALL_BYTES + number % 2) for number in range(200)
    ]
    alpha = ready().has(*records, *(holding("alpha", number) for number in range(200)))
    for again in range(20):
        alpha.hears("beta", m.Ask(again, tuple(r.digest for r in records)))
    assert len(offers(alpha.effects)) == ASKED_PER_PEER
    alpha.tick(TAKE_MS_MAX)
    assert len(offers(alpha.hears("beta", m.Ask(99, (digest(1), digest(2)))))) == 2


# --- our own copy, once it is safe ---


def test_bytes_from_the_command_line_take_their_final_path_once_they_are_durable() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5, watched=False)
    out = [effect for peer in ("beta", "gamma", "delta") for effect in alpha.receipt(peer, made)]
    (publish,) = only(out, f.Publish)
    assert publish.items == (f.Publication(made, "checkpoints/step-5"),)
    assert only(out, f.Release, f.Unlink) == []
    ended = alpha.done(e.Published(publish.op, ((made, place("checkpoints/step-5", 5)),)))
    assert only(ended, f.Release) == [f.Release((made,))]
    assert only(ended, f.Unlink) == [f.Unlink((private(5),))]
    assert alpha.catalogue.places(digest(5)) == (place("checkpoints/step-5", 5),)


def test_a_private_copy_beside_a_watched_file_goes_once_it_is_durable() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    out = [effect for peer in ("beta", "gamma", "delta") for effect in alpha.receipt(peer, made)]
    assert f.Release((made,)) in out
    assert only(out, f.Unlink) == [f.Unlink((private(5),))]
    assert only(out, f.Publish) == []


def test_a_publication_that_fails_keeps_the_private_copy() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5, watched=False)
    out = [effect for peer in ("beta", "gamma", "delta") for effect in alpha.receipt(peer, made)]
    (publish,) = only(out, f.Publish)
    ended = alpha.done(e.Published(publish.op, (), ((made, "the folder cannot be written"),)))
    assert [report.event for report in only(ended, f.Report)] == ["not_published"]
    assert only(ended, f.Unlink) == []
    assert alpha.catalogue.places(digest(5)) == (private(5),)


def test_the_private_copy_of_a_snapshot_is_the_artifact_and_stays() -> None:
    alpha = ready()
    made = alpha.accepted("game/alpha/games/x.db", 5, watched=False)
    out = [effect for peer in ("beta", "gamma", "delta") for effect in alpha.receipt(peer, made)]
    assert f.Release((made,)) in out
    assert only(out, f.Unlink, f.Publish) == []
    assert alpha.catalogue.places(digest(5)) == (private(5),)
