"""The replica takes in: room first, then bytes, publication and the committed holding, and only then the receipt."""

from dataclasses import replace
from typing import Any

import pytest

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.fleet import Host, Kind
from protocol.pins import pin_name
from protocol.receiving import (
    ARRIVING_MAX,
    ASK_COUNT,
    ASK_MS,
    INCOMING_MAX,
    PUSH_GRACE_MS,
    RETRY_MS,
    SMALL_BYTES,
)
from protocol.sending import RECEIPT_MS_MAX
from protocol.values import NO_DIGEST, Batch, Holding, Parcel, Record, Rows, State, Stripe
from tests.replicas import (
    NAMES,
    NOW,
    Bench,
    digest,
    fleet,
    holding,
    only,
    place,
    private,
    record,
    sent,
    store_of,
)

NAME = "npz/training/a.npz"
PATH = "training/a.npz"


def ready(*peers: str, **facts: Any) -> Bench:
    return Bench(**facts).boot().connect(*(peers or ("beta", "gamma")))


def takes(effects: list[f.Effect]) -> list[m.Take]:
    return [take for _, take in sent(effects, m.Take)]


def refusal(effects: list[f.Effect]) -> str:
    """Why a lone parcel was not taken; fails unless that is all that happened."""
    (take,) = takes(effects)
    ((why,), (missing,)) = take.refused, take.missing
    assert missing == ()
    assert only(effects, f.Reserve) == []
    return why


# --- from the offer to the receipt ---


def test_room_is_reserved_before_a_byte_is_asked_for() -> None:
    alpha, made = ready(), record(NAME, 5)
    assert alpha.offer("beta", made) == [f.Reserve("beta", 7, (Parcel(made),))]


def test_with_room_the_sender_is_told_what_is_missing() -> None:
    alpha, made, other = ready(), record(NAME, 5), record("npz/training/b.npz", 6)
    alpha.offer("beta", made, other)
    gaps = (Stripe(2, 3), Stripe(9, 1))
    out = alpha.handle(e.Reserved("beta", 7, ((), gaps), ("", "")))
    assert out == [f.Send("beta", m.Take(7, ("", ""), ((), gaps)))]


def test_what_has_arrived_is_published_under_its_name() -> None:
    alpha, made = ready(), record(NAME, 5)
    alpha.told("beta", made)
    assert alpha.arrives("beta", made) == [f.Publish(1, (f.Publication(made, PATH),))]


def test_a_record_that_nobody_has_told_yet_is_written_before_the_file_gets_its_name() -> None:
    """After a crash between the two, the next scan would take the file for a user's new version."""
    alpha, made = ready(), record(NAME, 5)
    alpha.offer("beta", made)
    alpha.handle(e.Reserved("beta", 7, ((),), ("",)))
    (commit,) = alpha.handle(e.Arrived("beta", 7, (made,)))
    assert isinstance(commit, f.Commit)
    assert commit.batch == Batch(Rows((made,)))
    assert only(alpha.settle(), f.Publish) == [f.Publish(1, (f.Publication(made, PATH),))]


def test_a_file_whose_record_cannot_be_written_gets_no_name_and_the_sender_hears_why() -> None:
    alpha, made = ready(), record(NAME, 5)
    alpha.offer("beta", made)
    alpha.handle(e.Reserved("beta", 7, ((),), ("",)))
    alpha.handle(e.Arrived("beta", 7, (made,)))
    out = alpha.fail() + alpha.settle()
    assert only(out, f.Publish) == []
    (receipt,) = [receipt for _, receipt in sent(out, m.Receipt)]
    assert receipt.failed == ((made.digest, "its record could not be written"),)


def test_a_published_file_becomes_a_holding_and_nobody_is_told_before_that_is_written() -> None:
    alpha, made = ready(), record(NAME, 5)
    (publish,) = only(alpha.arrives("beta", made), f.Publish)
    (commit,) = alpha.handle(e.Published(publish.op, ((made, place(PATH, 5)),)))
    assert isinstance(commit, f.Commit)
    (held,) = commit.batch.rows.holdings
    expected = Holding("alpha", store_of("alpha"), digest(5), held.seq)
    assert commit.batch == Batch(Rows((), (expected,)), (place(PATH, 5),))


def test_the_receipt_goes_to_the_sender_and_the_rows_to_all_once_the_holding_is_written() -> None:
    alpha, made = ready(), record(NAME, 5)
    (publish,) = only(alpha.arrives("beta", made), f.Publish)
    (commit,) = only(alpha.handle(e.Published(publish.op, ((made, place(PATH, 5)),))), f.Commit)
    rows = commit.batch.rows
    out = alpha.settle()
    assert sorted(map(repr, out)) == sorted(
        map(
            repr,
            [
                f.Send("beta", m.Receipt(7, rows.holdings)),
                f.Unreserve("beta", 7),
                f.Send("beta", m.RowsMessage(rows)),
                f.Send("gamma", m.RowsMessage(rows)),
            ],
        )
    )


def test_a_receipt_is_never_sent_before_the_commit() -> None:
    alpha, made = ready(), record(NAME, 5)
    alpha.arrives("beta", made)
    alpha.handle(e.Published(1, ((made, place(PATH, 5)),)))
    alpha.now_ms += 1_000
    alpha.handle(e.Timer("tick"))
    assert sent(alpha.effects, m.Receipt) == []
    alpha.settle()
    assert len(sent(alpha.effects, m.Receipt)) == 1


def test_a_holding_that_could_not_be_written_is_no_receipt() -> None:
    alpha, made = ready(), record(NAME, 5)
    alpha.arrives("beta", made)
    alpha.handle(e.Published(1, ((made, place(PATH, 5)),)))
    out = alpha.fail()
    (receipt,) = [receipt for _, receipt in sent(out, m.Receipt)]
    assert receipt.holdings == ()
    assert [failed for failed, _ in receipt.failed] == [made.digest]
    assert not alpha.replica.ctx.holds(made.digest)


def test_what_did_not_arrive_is_named_in_the_receipt_with_its_reason() -> None:
    alpha = ready()
    good, bad, never = (record(f"npz/training/{at}", at) for at in (5, 6, 7))
    alpha.offer("beta", good, bad, never)
    alpha.handle(e.Reserved("beta", 7, ((),) * 3, ("",) * 3))
    (publish,) = only(alpha.done(e.Arrived("beta", 7, (good,), ((bad, "beta sent wrong bytes"),))), f.Publish)
    out = alpha.done(e.Published(publish.op, ((good, place("training/5", 5)),)))
    (receipt,) = [receipt for _, receipt in sent(out, m.Receipt)]
    assert [h.digest for h in receipt.holdings] == [good.digest]
    assert dict(receipt.failed) == {bad.digest: "beta sent wrong bytes", never.digest: "the stream ended without it"}


def test_a_publication_that_fails_is_no_holding() -> None:
    alpha, made = ready(), record(NAME, 5)
    alpha.arrives("beta", made)
    out = alpha.done(e.Published(1, (), ((made, "input/output error"),)))
    (receipt,) = [receipt for _, receipt in sent(out, m.Receipt)]
    assert (receipt.holdings, dict(receipt.failed)) == ((), {made.digest: "input/output error"})
    assert [report.event for report in only(out, f.Report)] == ["not_published"]


def test_bytes_named_twice_in_an_offer_travel_once() -> None:
    alpha = ready()
    one, other = record(NAME, 5), record("npz/training/b.npz", 5)
    (reserve,) = alpha.offer("beta", one, other)
    assert isinstance(reserve, f.Reserve)
    assert reserve.parcels == (Parcel(one),)
    (take,) = takes(alpha.handle(e.Reserved("beta", 7, ((),), ("",))))
    assert take.refused == ("", m.BUSY)


def test_the_reply_is_aligned_with_the_offer_when_some_are_refused() -> None:
    alpha = ready().has(holding("alpha", 6))
    offered = [record(f"npz/training/{at}", at) for at in (5, 6, 7, 8)]
    (reserve,) = only(alpha.offer("beta", *offered), f.Reserve)
    assert [parcel.record for parcel in reserve.parcels] == [offered[0], offered[2], offered[3]]
    gap = (Stripe(1, 1),)
    (take,) = takes(alpha.handle(e.Reserved("beta", 7, ((), (), gap), ("", "no room", ""))))
    assert take == m.Take(7, ("", m.HAVE, "no room", ""), ((), (), (), gap))


# --- what is refused ---


def test_no_room_on_the_disk_is_a_refusal_and_gives_the_reservation_back() -> None:
    alpha, made = ready(), record(NAME, 5)
    alpha.offer("beta", made)
    out = alpha.handle(e.Reserved("beta", 7, ((),), ("no room for 1,005 bytes",)))
    assert out == [f.Send("beta", m.Take(7, ("no room for 1,005 bytes",), ((),))), f.Unreserve("beta", 7)]
    assert alpha.offer("gamma", made, transfer=8) != []  # nothing of it is remembered as on its way


def test_a_node_at_its_cap_refuses_what_is_for_others() -> None:
    alpha = Bench().boot(accepting=False).connect("beta")
    assert "at its cap" in refusal(alpha.offer("beta", record(NAME, 5)))


def test_an_excluded_node_refuses_every_offer_and_fetches_nothing() -> None:
    of = fleet(Host("alpha", address="alpha:7946", excluded=True))
    alpha, made = ready(of=of), record("model/models/a.pth", 5)
    assert "excluded" in refusal(alpha.offer("beta", made))
    out = alpha.told("beta", made, holding("beta", 5)) + alpha.tick(60_000)
    assert only(out, f.Reserve) == []
    assert sent(out, m.Ask) == []


def test_a_leaving_node_takes_nothing_more() -> None:
    alpha = ready()
    alpha.accepted("checkpoint/a", 9)  # something to push, so that it does not leave at once
    alpha.done(e.Flush(1, NOW + 8_000, leave=True))
    assert refusal(alpha.offer("beta", record(NAME, 5))) == m.LEAVING


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (record("unheard/of", 5), "not in the hosts file"),
        (record("spore/revoked/gamma", 5), "not in the hosts file"),
        (record(NAME, 5, state=State.DELETED), "deleted"),
        (record("game/gamma/x.db", 5), "does not belong to beta"),
        (record("game/beta", 5), "does not belong to beta"),
        (record("game/alpha/.spore/store", 5, origin="alpha"), "does not belong"),
        (record("npz/peers/gamma/x", 5), "does not belong"),
        (record("game/beta/" + "/".join(["x" * 200] * 5) + "y" * 10, 5), "does not belong"),
    ],
    ids=lambda value: value.name[:24] if isinstance(value, Record) else "",
)
def test_what_may_not_lie_here_is_refused_with_its_reason(made: Record, why: str) -> None:
    alpha = ready()
    assert why in refusal(alpha.offer("beta", made))


def test_what_was_deleted_is_refused() -> None:
    alpha, made = ready(), record(NAME, 5)
    alpha.told("gamma", replace(record(NAME, 0, at_ms=NOW + 1), state=State.DELETED, size=0))
    assert "deleted" in refusal(alpha.offer("beta", made))


def test_what_is_held_is_answered_with_have_and_the_statement_of_it() -> None:
    alpha, made = ready().has(record(NAME, 5), holding("alpha", 5), places=[place(PATH, 5)]), record(NAME, 5)
    out = alpha.offer("beta", made)
    assert out == [
        f.Send("beta", m.RowsMessage(Rows(holdings=(holding("alpha", 5),)))),
        f.Send("beta", m.Take(7, (m.HAVE,), ((),))),
    ]


def test_what_the_mate_of_a_shared_store_holds_is_held() -> None:
    of = fleet(*(Host(name, address=f"{name}:7946", nfs_group="alpha") for name in ("alpha", "beta")))
    shared = store_of("nfs")
    alpha = Bench(of=of, store=shared).boot().connect("beta", store=shared).connect("gamma")
    alpha.told("beta", record(NAME, 5, origin="gamma"), holding("beta", 5, store=shared))
    out = alpha.offer("gamma", record(NAME, 5, origin="gamma"))
    assert takes(out) == [m.Take(7, (m.HAVE,), ((),))]
    assert sent(out, m.RowsMessage) == [("gamma", m.RowsMessage(Rows(holdings=(holding("beta", 5, store=shared),))))]


def test_what_is_on_its_way_from_another_is_busy() -> None:
    alpha, made = ready(), record(NAME, 5)
    alpha.offer("beta", made)
    assert refusal(alpha.offer("gamma", made, transfer=8)) == m.BUSY


def test_a_repeated_offer_is_answered_once() -> None:
    alpha, made = ready(), record(NAME, 5)
    assert only(alpha.offer("beta", made), f.Reserve)
    assert alpha.offer("beta", made) == []


# --- bounds ---


def test_transfers_at_once_are_bounded() -> None:
    alpha = ready()
    for number in range(INCOMING_MAX):
        assert only(alpha.offer("beta", record(f"npz/{number}", number + 10), transfer=number + 1), f.Reserve)
    assert refusal(alpha.offer("beta", record(NAME, 5), transfer=1_000)) == m.BUSY
    alpha.handle(e.Reserved("beta", 1, ((),), ("no room",)))
    assert only(alpha.offer("beta", record(NAME, 5), transfer=1_001), f.Reserve)


def test_digests_on_their_way_in_are_bounded() -> None:
    alpha = ready()
    in_each = 1_000
    for number in range(ARRIVING_MAX // in_each):
        batch = [record(f"npz/{number}/{at}", number * in_each + at + 10) for at in range(in_each)]
        assert only(alpha.offer("beta", *batch, transfer=number + 1), f.Reserve)
    assert refusal(alpha.offer("beta", record(NAME, 5), transfer=1_000)) == m.BUSY


def test_what_is_to_be_fetched_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep finds again what did not fit."""
    monkeypatch.setattr("protocol.receiving.WANTED_MAX", 20)
    alpha = ready("beta")
    numbers = range(10, 50)
    alpha.told("beta", *(large(f"model/{at}", at) for at in numbers), *(holding("beta", at) for at in numbers))
    assert len(alpha.replica.receiving.wanted) == 20


def test_what_was_lost_here_is_fetched_again_within_the_same_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.receiving.WANTED_MAX", 20)
    numbers = range(10, 50)
    lost = [place(f"lost/{at}", at) for at in numbers]
    alpha = Bench().boot().has(*(record(f"model/{at}", at) for at in numbers), places=lost)
    alpha.has(*(holding("alpha", at) for at in numbers))
    for gone in lost:
        alpha.done(e.Withdrawn(gone, "the disk was cleaned"))
    assert len(alpha.replica.receiving.wanted) == 20


def test_the_end_of_a_session_makes_room_for_the_same_bytes_from_another() -> None:
    alpha, made = ready(), record(NAME, 5)
    alpha.offer("beta", made)
    alpha.handle(e.Reserved("beta", 7, ((),), ("",)))
    assert f.Unreserve("beta", 7) in alpha.done(e.SessionDown("beta", "it was killed"))
    assert only(alpha.offer("gamma", made, transfer=8), f.Reserve)


# --- late and unknown ---


def test_room_for_an_unknown_transfer_is_given_back() -> None:
    assert ready().handle(e.Reserved("beta", 99, ((),), ("",))) == [f.Unreserve("beta", 99)]


def test_bytes_of_an_unknown_transfer_are_left_in_staging() -> None:
    alpha = ready()
    assert alpha.handle(e.Arrived("beta", 99, (record(NAME, 5),))) == []


def test_bytes_that_were_not_agreed_to_are_not_published() -> None:
    alpha, made = ready(), record(NAME, 5)
    alpha.offer("beta", made)
    alpha.handle(e.Reserved("beta", 7, ((),), ("",)))
    out = alpha.handle(e.Arrived("beta", 7, (record("npz/training/other", 6),)))
    assert only(out, f.Publish) == []
    (receipt,) = [receipt for _, receipt in sent(out, m.Receipt)]
    assert [failed for failed, _ in receipt.failed] == [made.digest]


def test_a_record_from_the_stream_never_replaces_the_one_agreed_to() -> None:
    """Same bytes, another name: what is published is what was offered."""
    alpha, made = ready(), record(NAME, 5)
    alpha.offer("beta", made)
    alpha.handle(e.Reserved("beta", 7, ((),), ("",)))
    (publish,) = only(alpha.done(e.Arrived("beta", 7, (record("npz/training/other", 5),))), f.Publish)
    assert [item.record for item in publish.items] == [made]


# --- which path ---


def test_an_older_version_that_arrives_later_does_not_take_the_name() -> None:
    alpha = ready()
    older, newer = record("checkpoint/a", 5), record("checkpoint/a", 6, at_ms=NOW + 1)
    alpha.holds_from("beta", newer)
    (publish,) = only(alpha.arrives("beta", older, transfer=8), f.Publish)
    assert publish.items == (f.Publication(older, None),)
    alpha.done(e.Published(publish.op, ((older, private(5)),)))
    assert alpha.replica.ctx.current("checkpoint/a") == newer
    assert alpha.catalogue.place("a") is not None
    assert alpha.replica.ctx.holds(older.digest)


def test_a_newer_version_of_which_only_the_record_is_here_keeps_the_older_from_the_name() -> None:
    alpha = ready()
    older, newer = record("checkpoint/a", 5), record("checkpoint/a", 6, at_ms=NOW + 1)
    alpha.told("beta", newer)
    (publish,) = only(alpha.arrives("beta", older), f.Publish)
    assert publish.items == (f.Publication(older, None),)


def test_the_file_that_makes_room_is_still_held_at_its_new_place() -> None:
    alpha = ready()
    older, newer = record("checkpoint/a", 5), record("checkpoint/a", 6, at_ms=NOW + 1)
    alpha.holds_from("beta", older)
    alpha.arrives("beta", newer, transfer=8)
    alpha.done(e.Published(2, ((newer, place("a", 6)),), moved=(("a", private(5)),)))
    assert alpha.catalogue.places(digest(5)) == (private(5),)
    assert alpha.catalogue.places(digest(6)) == (place("a", 6),)
    assert alpha.replica.ctx.holds(digest(5))


def test_the_files_of_another_node_are_published_below_peers() -> None:
    alpha = ready()
    theirs = record("game/beta/games/x.db", 5)
    (publish,) = only(alpha.arrives("beta", theirs), f.Publish)
    assert publish.items == (f.Publication(theirs, "peers/beta/games/x.db"),)


def test_two_nodes_files_of_one_name_do_not_meet() -> None:
    alpha = ready()
    one, other = record("game/beta/games/x.db", 5), record("game/gamma/games/x.db", 6, origin="gamma")
    alpha.holds_from("beta", one)
    alpha.holds_from("gamma", other)
    assert alpha.catalogue.places(digest(5))[0].path == "peers/beta/games/x.db"
    assert alpha.catalogue.places(digest(6))[0].path == "peers/gamma/games/x.db"


def test_two_kinds_with_one_path_do_not_push_each_other_out() -> None:
    kinds = (Kind("one"), Kind("two"))
    alpha = ready(of=fleet(kinds=kinds))
    alpha.holds_from("beta", record("one/x", 5))
    (publish,) = only(alpha.arrives("beta", record("two/x", 6), transfer=8), f.Publish)
    assert publish.items[0].path is None


def test_held_bytes_take_a_second_name_from_our_own_copy() -> None:
    alpha = ready()
    alpha.holds_from("beta", record(NAME, 5))
    other = record("npz/training/b.npz", 5)
    out = alpha.offer("beta", other, transfer=8) + alpha.settle()
    assert [publish.items for publish in only(out, f.Publish)] == [(f.Publication(other, "training/b.npz"),)]
    assert [take.refused for take in takes(out)] == [(m.HAVE,)]


# --- fetching what nobody pushes ---


def test_a_broadcast_artifact_is_fetched_from_its_holder() -> None:
    alpha = ready("beta", "gamma", "delta", "epsilon", "zeta")
    made = untargeted("model/models/a.pth", alpha)
    out = alpha.told("beta", made, holding("beta", number_of(made))) + alpha.tick()
    assert [(peer, ask.digests) for peer, ask in sent(out, m.Ask)] == [("beta", (made.digest,))]
    assert sent(alpha.tick(), m.Ask) == []


def untargeted(name: str, alpha: Bench, **facts: Any) -> Record:
    """An artifact of beta's that its origin would not push to alpha."""
    for number in range(100, 200):
        made = record(name, number, **facts)
        if not alpha.replica.receiving.policy.is_target(made):
            return made
    raise AssertionError("alpha is a target of everything")


def targeted(name: str, alpha: Bench, **facts: Any) -> Record:
    return next(
        made
        for made in (record(name, number, **facts) for number in range(100, 200))
        if alpha.replica.receiving.policy.is_target(made)
    )


def number_of(made: Record) -> int:
    return made.size - 1_000 if made.size < SMALL_BYTES else int.from_bytes(made.digest[:4], "big")


def test_a_target_waits_for_the_push_before_it_fetches_by_itself() -> None:
    alpha, made = ready("beta"), record(NAME, 5)
    alpha.told("beta", made, holding("beta", 5))
    assert sent(alpha.tick(PUSH_GRACE_MS - 1), m.Ask) == []
    assert [peer for peer, _ in sent(alpha.tick(1), m.Ask)] == ["beta"]


def test_what_the_push_brings_is_not_fetched_too() -> None:
    alpha, made = ready("beta"), record(NAME, 5)
    alpha.told("beta", made, holding("beta", 5))
    alpha.holds_from("beta", made)
    alpha.tick(PUSH_GRACE_MS * 2)
    assert sent(alpha.effects, m.Ask) == []


def test_who_is_no_target_of_a_hybrid_kind_without_roles_fetches_nothing() -> None:
    alpha = ready("beta", "gamma", "delta", "epsilon", "zeta")
    made = untargeted(NAME, alpha)
    alpha.told("beta", made, holding("beta", number_of(made)))
    alpha.tick(PUSH_GRACE_MS * 2)
    assert sent(alpha.effects, m.Ask) == []


@pytest.mark.parametrize(("role", "fetched"), [("training", True), ("selfplay", False)])
def test_a_kind_with_roles_is_fetched_by_these_roles(role: str, fetched: bool) -> None:
    of = fleet(Host("alpha", address="alpha:7946", role=role), kinds=(Kind("npz", roles=("training",)),))
    alpha = ready(*NAMES[1:], of=of)
    made = record(NAME, 100) if fetched else untargeted(NAME, alpha)  # who wants it anyhow is a target of its push
    out = alpha.told("beta", made, holding("beta", number_of(made))) + alpha.tick(PUSH_GRACE_MS)
    assert bool(sent(out, m.Ask)) is fetched


def test_a_copy_that_is_there_stays_where_it_is_whoever_joins() -> None:
    """Nothing moves without need: a target that comes to be one later fetches only while copies are too few."""
    alpha = ready("beta", "gamma", "delta")
    made = targeted(NAME, alpha)
    alpha.told("beta", made, *(holding(node, number_of(made)) for node in ("beta", "gamma", "delta")))
    alpha.tick(PUSH_GRACE_MS * 2)
    assert sent(alpha.effects, m.Ask) == []


def test_a_kind_that_a_host_does_not_receive_is_refused_there() -> None:
    of = fleet(Host("alpha", address="alpha:7946", receive={"npz": False}))
    alpha, made = ready("beta", of=of), record(NAME, 5)
    (_, take), *_ = sent(alpha.offer("beta", made), m.Take)
    assert take.refused == ("alpha does not receive the kind npz",)
    assert sent(alpha.told("beta", made, holding("beta", 5)) + alpha.tick(PUSH_GRACE_MS * 2), m.Ask) == []


def test_what_is_pinned_here_is_fetched_whatever_the_strategy_says() -> None:
    alpha = ready(of=fleet(kinds=(Kind("npz", strategy="pull"),)))
    alpha.told("beta", record(NAME, 5), holding("beta", 5))
    assert sent(alpha.tick(), m.Ask) == []
    pin = replace(record(pin_name("alpha", NAME), 0, meta=(("pinned", 1),)), digest=NO_DIGEST)
    assert sent(alpha.told("beta", pin) + alpha.tick(PUSH_GRACE_MS), m.Ask) != []


def test_a_kind_to_be_pulled_is_not_fetched_unasked() -> None:
    alpha = ready(of=fleet(kinds=(Kind("npz", strategy="pull"),)))
    alpha.told("beta", record(NAME, 5), holding("beta", 5))
    alpha.tick(PUSH_GRACE_MS)
    assert sent(alpha.effects, m.Ask) == []


def test_small_artifacts_are_asked_for_many_at_once_and_not_again_until_that_is_lost() -> None:
    alpha = ready("beta")
    made = [record(f"model/{number}", number + 10) for number in range(ASK_COUNT + 7)]
    alpha.told("beta", *made, *(holding("beta", number + 10) for number in range(ASK_COUNT + 7)))
    assert [len(ask.digests) for _, ask in sent(alpha.tick(PUSH_GRACE_MS), m.Ask)] == [ASK_COUNT]
    assert [len(ask.digests) for _, ask in sent(alpha.tick(), m.Ask)] == [7]
    assert sent(alpha.tick(), m.Ask) == []
    assert [len(ask.digests) for _, ask in sent(alpha.tick(ASK_MS), m.Ask)] == [ASK_COUNT]


def large(name: str, number: int, **facts: Any) -> Record:
    return replace(record(name, number, **facts), size=SMALL_BYTES + 1)


def test_a_large_artifact_is_pulled_piece_by_piece_from_every_live_holder() -> None:
    alpha, made = ready("beta", "gamma", "delta"), large("model/a", 5)
    alpha.told("beta", made, holding("beta", 5), holding("gamma", 5), holding("zeta", 5))
    (reserve,) = only(alpha.tick(PUSH_GRACE_MS), f.Reserve)
    assert (reserve.peer, reserve.parcels) == ("alpha", (Parcel(made),))
    (first,) = only(alpha.handle(e.Reserved("alpha", reserve.transfer, ((),), ("",))), f.Pull)
    (second,) = only(alpha.handle(e.Pulled(first.number)), f.Pull)  # the chunk list is here: now from both
    assert {first.source, second.source} == {"beta", "gamma"}
    assert sorted(run.first for run in (first.run, second.run)) == [0, 1]
    (publish,) = only(alpha.handle(e.Pulled(second.number)), f.Publish)
    out = alpha.done(e.Published(publish.op, ((made, place("a", 5)),)))
    assert sent(out, m.Receipt) == []  # nobody sent it: nobody waits
    assert alpha.replica.ctx.holds(made.digest)


def test_fetches_at_once_are_bounded_by_the_hosts_file() -> None:
    alpha = ready("beta")
    alpha.told(
        "beta", *(large(f"model/{at}", at + 10) for at in range(9)), *(holding("beta", at + 10) for at in range(9))
    )
    assert len(only(alpha.tick(PUSH_GRACE_MS), f.Reserve)) == alpha.replica.ctx.routing.max_concurrent_syncs


def test_a_fetch_that_fails_is_made_again_later() -> None:
    alpha, made = ready("beta"), large("model/a", 5)
    alpha.told("beta", made, holding("beta", 5))
    (reserve,) = only(alpha.tick(PUSH_GRACE_MS), f.Reserve)
    alpha.handle(e.Reserved("alpha", reserve.transfer, ((),), ("",)))
    out = alpha.handle(e.Arrived("alpha", reserve.transfer, (), ((made, "beta closed the connection"),)))
    assert [report.event for report in only(out, f.Report)] == ["fetch_failed"]
    assert f.Unreserve("alpha", reserve.transfer) in out
    assert only(alpha.tick(RETRY_MS - 1), f.Reserve) == []
    assert len(only(alpha.tick(1), f.Reserve)) == 1


def test_a_fetch_for_which_there_is_no_room_is_made_again_later() -> None:
    alpha, made = ready("beta"), large("model/a", 5)
    alpha.told("beta", made, holding("beta", 5))
    (reserve,) = only(alpha.tick(PUSH_GRACE_MS), f.Reserve)
    out = alpha.handle(e.Reserved("alpha", reserve.transfer, ((),), ("no room for it",)))
    assert only(out, f.Fetch) == []
    assert len(only(alpha.tick(RETRY_MS), f.Reserve)) == 1


def test_a_fetch_of_our_own_may_take_as_long_as_its_driver_lets_it() -> None:
    """A large artifact over a slow link takes hours; the driver sees whether bytes come, and ends what stalls."""
    alpha, made = ready("beta"), large("model/a", 5)
    alpha.told("beta", made, holding("beta", 5))
    (reserve,) = only(alpha.tick(PUSH_GRACE_MS), f.Reserve)
    alpha.handle(e.Reserved("alpha", reserve.transfer, ((),), ("",)))
    assert only(alpha.tick(24 * 3600 * 1000), f.Unreserve, f.Reserve) == []
    out = alpha.handle(e.Arrived("alpha", reserve.transfer, (), ((made, "it stalled"),)))
    assert f.Unreserve("alpha", reserve.transfer) in out


def test_of_a_shared_store_the_first_in_name_order_fetches() -> None:
    of = fleet(*(Host(name, address=f"{name}:7946", nfs_group="alpha") for name in ("alpha", "beta")))
    shared, made = store_of("nfs"), record("model/models/a.pth", 5, origin="gamma")
    for node, mate, fetches in (("alpha", "beta", True), ("beta", "alpha", False)):
        bench = Bench(node, of, shared).boot().connect(mate, store=shared).connect("gamma")
        bench.told("gamma", made, holding("gamma", 5))
        assert bool(sent(bench.tick(PUSH_GRACE_MS), m.Ask)) is fetches


def test_a_node_that_nobody_can_dial_fetches_what_it_is_offered() -> None:
    of = fleet(Host("alpha"))
    alpha, made = ready("beta", of=of), record(NAME, 5)
    assert refusal(alpha.offer("beta", made)) == m.BUSY
    (reserve,) = only(alpha.tick(), f.Reserve)
    (fetch,) = only(alpha.handle(e.Reserved("alpha", reserve.transfer, ((),), ("",))), f.Fetch)
    assert fetch.sources == ("beta",)


def test_what_is_large_is_asked_of_a_holder_that_nobody_can_dial() -> None:
    alpha = Bench(of=fleet(Host("beta"))).boot().connect("beta", address="")
    alpha.told("beta", large("model/a", 5), holding("beta", 5))
    out = alpha.tick(PUSH_GRACE_MS)
    assert [(peer, ask.digests) for peer, ask in sent(out, m.Ask)] == [("beta", (digest(5),))]
    assert only(out, f.Reserve) == []


def test_what_was_damaged_here_is_fetched_again_where_copies_are_too_few() -> None:
    alpha, made = ready("beta"), record(NAME, 5)
    alpha.holds_from("beta", made)
    alpha.told("beta", holding("beta", 5))
    (lost,) = alpha.catalogue.places(digest(5))
    alpha.done(e.Withdrawn(lost, "its bytes are damaged"))
    assert [ask.digests for _, ask in sent(alpha.tick(), m.Ask)] == [(digest(5),)]


def test_what_a_user_deleted_here_is_not_fetched_again_where_copies_are_enough() -> None:
    alpha, made = ready("beta", "gamma", "delta"), record(NAME, 5)
    alpha.holds_from("beta", made)
    alpha.told("beta", holding("beta", 5), holding("gamma", 5), holding("delta", 5))
    (lost,) = alpha.catalogue.places(digest(5))
    alpha.done(e.Withdrawn(lost, "it was deleted"))
    assert sent(alpha.tick(60_000), m.Ask) == []


# --- a user's get ---


def test_bytes_for_a_user_are_fetched_into_staging_and_held_by_nobody() -> None:
    alpha, made = ready("beta"), record(NAME, 5)
    alpha.has(made, holding("beta", 5))
    (reserve,) = alpha.handle(e.Want(3, made))
    assert isinstance(reserve, f.Reserve)
    (fetch,) = only(alpha.handle(e.Reserved("alpha", reserve.transfer, ((),), ("",))), f.Fetch)
    assert (fetch.record, fetch.sources) == (made, ("beta",))
    assert alpha.done(e.Arrived("alpha", reserve.transfer, (made,))) == [
        f.Answer(3, "", made),
        f.Unreserve("alpha", reserve.transfer),
    ]
    assert not alpha.replica.ctx.holds(made.digest)


def test_a_user_is_told_when_nobody_has_it() -> None:
    alpha, made = ready("beta"), record(NAME, 5)
    alpha.has(made, holding("zeta", 5))
    (answer,) = only(alpha.handle(e.Want(3, made)), f.Answer)
    assert "no reachable node holds" in answer.error


@pytest.mark.parametrize("refused", ["no room for it", ""])
def test_a_user_is_told_why_it_could_not_be_fetched(refused: str) -> None:
    alpha, made = ready("beta"), record(NAME, 5)
    alpha.has(made, holding("beta", 5))
    (reserve,) = only(alpha.handle(e.Want(3, made)), f.Reserve)
    out = alpha.handle(e.Reserved("alpha", reserve.transfer, ((),), (refused,)))
    if not refused:
        out = alpha.handle(e.Arrived("alpha", reserve.transfer, (), ((made, "beta sent wrong bytes"),)))
    (answer,) = only(out, f.Answer)
    assert (refused or "beta sent wrong bytes") in answer.error
    assert answer.request == 3
    assert f.Unreserve("alpha", reserve.transfer) in out


def test_a_user_is_told_when_a_fetch_ends_without_the_bytes_and_without_a_reason() -> None:
    alpha, made = ready("beta"), record(NAME, 5)
    alpha.has(made, holding("beta", 5))
    (reserve,) = only(alpha.handle(e.Want(3, made)), f.Reserve)
    alpha.handle(e.Reserved("alpha", reserve.transfer, ((),), ("",)))
    (answer,) = only(alpha.handle(e.Arrived("alpha", reserve.transfer, ())), f.Answer)
    assert answer.request == 3
    assert "ended without the bytes" in answer.error


# --- senders that fail ---


def accepts(alpha: Bench, peer: str, made: Record, transfer: int) -> list[f.Effect]:
    """Alpha takes what a peer offers and has room for it; nothing of it comes."""
    out = alpha.offer(peer, made, transfer=transfer)
    return out + alpha.handle(e.Reserved(peer, transfer, ((),), ("",)))


def test_an_offer_made_again_replaces_the_one_that_failed_at_its_sender() -> None:
    alpha, made = ready("beta", "gamma"), record(NAME, 5)
    accepts(alpha, "beta", made, 7)
    again = accepts(alpha, "beta", made, 8)
    assert f.Unreserve("beta", 7) in again
    assert sent(again, m.Take) == [("beta", m.Take(8, ("",), ((),)))]


def test_an_offer_of_another_peer_replaces_nothing() -> None:
    alpha, made = ready("beta", "gamma"), record(NAME, 5)
    accepts(alpha, "beta", made, 7)
    out = alpha.offer("gamma", made, transfer=7)
    assert sent(out, m.Take) == [("gamma", m.Take(7, (m.BUSY,), ((),)))]
    assert only(out, f.Unreserve) == []


def test_an_offer_made_again_leaves_what_is_being_published_alone() -> None:
    alpha, made = ready("beta"), record(NAME, 5)
    alpha.arrives("beta", made, transfer=7)
    assert only(alpha.offer("beta", made, transfer=8), f.Unreserve) == []


def test_an_upload_that_never_comes_is_given_up_and_its_sender_told() -> None:
    alpha, made = ready("beta", "gamma"), record(NAME, 5)
    accepts(alpha, "beta", made, 7)
    assert only(alpha.tick(RECEIPT_MS_MAX), f.Unreserve) == []
    out = alpha.tick()
    assert f.Unreserve("beta", 7) in out
    assert sent(out, m.Receipt) == [("beta", m.Receipt(7, (), ((made.digest, "the stream ended without it"),)))]
    assert sent(accepts(alpha, "gamma", made, 7), m.Take) == [("gamma", m.Take(7, ("",), ((),)))]


def test_an_excluded_node_gets_bytes_for_its_users() -> None:
    of = fleet(Host("alpha", address="alpha:7946", excluded=True))
    alpha, made = ready("beta", of=of), record(NAME, 5)
    alpha.has(made, holding("beta", 5))
    assert only(alpha.handle(e.Want(3, made)), f.Reserve)
