"""The replica accepts: the log and the manifest first, then answer, rows and offers; and old never beats new."""

from dataclasses import replace

import pytest

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.clock import COUNTER_BITS, HLC_MAX, SCANNED_MAX
from protocol.fleet import Host
from protocol.names import check_name
from protocol.values import (
    NO_DIGEST,
    Batch,
    Holding,
    Parcel,
    Record,
    RecordKey,
    Rows,
    State,
)
from tests.replicas import (
    NOW,
    Bench,
    digest,
    fleet,
    hello,
    holding,
    only,
    place,
    private,
    record,
    sent,
    store_of,
    without,
)

NAME = "checkpoint/checkpoints/step-5"
PATH = "checkpoints/step-5"
STAMP = NOW << COUNTER_BITS


def ready(**facts: object) -> Bench:
    """Alpha with sessions to beta and gamma, which can hold."""
    return Bench(**facts).boot().connect("beta", "gamma")  # type: ignore[arg-type]


# --- write, then tell ---


def test_a_put_writes_the_log_and_the_manifest_and_tells_nobody() -> None:
    alpha = ready()
    first = alpha.replica.ctx._seq + 1
    made = Record(NAME, STAMP + 1, "alpha", digest(5), digest(1_000_005), 1_005)
    held = Holding("alpha", store_of("alpha"), digest(5), STAMP + 2)
    assert alpha.handle(alpha.put(NAME, 5, request=3)) == [
        f.Log(first, f.Entry(made, f.Kept(private(5)))),
        f.Commit(first + 1, Batch(Rows((made,), (held,)), (place(PATH, 5), private(5)))),
    ]


def test_once_it_is_durable_it_is_answered_told_and_offered_in_that_order() -> None:
    alpha = ready()
    logged, committed = only(alpha.handle(alpha.put(NAME, 5, request=3)), f.Log, f.Commit)
    assert isinstance(logged, f.Log)
    assert isinstance(committed, f.Commit)
    made, rows = logged.entry.record, committed.batch.rows
    transfer = 1 << 32  # numbers of the first life
    assert alpha.settle() == [
        f.Answer(3, "", made, copies=0),
        f.Send("beta", m.RowsMessage(rows)),
        f.Send("gamma", m.RowsMessage(rows)),
        f.Send("beta", m.Offer(transfer + 1, (Parcel(made),))),
        f.Send("gamma", m.Offer(transfer + 2, (Parcel(made),))),
    ]


def test_nothing_is_told_while_only_the_log_entry_is_durable() -> None:
    alpha = ready()
    logged = only(alpha.handle(alpha.put(NAME, 5, request=3)), f.Log)[0]
    assert alpha.handle(e.Durable(logged.seq)) == []


def test_no_effect_tells_of_what_is_not_durable_whatever_happens_meanwhile() -> None:
    alpha = ready()
    alpha.handle(alpha.put(NAME, 5, request=3))
    told = (
        alpha.handle(e.Timer("tick"))
        + alpha.handle(e.SessionUp("delta", hello("delta", (0, 0))))
        + alpha.hears("beta", m.Ask(1, (digest(5),)))
    )
    assert digest(5) not in repr(without(told, f.Log, f.Commit)).encode()
    assert sent(told, m.RowsMessage) == sent(told, m.Offer) == []


def test_puts_that_become_durable_together_are_told_together() -> None:
    alpha = ready()
    names = [f"checkpoint/checkpoints/{number}" for number in range(3)]
    for number, name in enumerate(names):
        alpha.handle(alpha.put(name, number + 10, request=number + 1))
    out = alpha.settle()
    assert [answer.request for answer in only(out, f.Answer)] == [1, 2, 3]
    (to_beta,) = [message for peer, message in sent(out, m.RowsMessage) if peer == "beta"]
    assert [r.name for r in to_beta.rows.records] == names
    (offer,) = [message for peer, message in sent(out, m.Offer) if peer == "beta"]
    assert [parcel.record.name for parcel in offer.parcels] == names


def test_bytes_in_the_log_have_no_place_until_they_are_published() -> None:
    alpha = ready()
    out = alpha.handle(alpha.put(NAME, 5, watched=False, source=f.Inline(b"x")))
    committed = only(out, f.Commit)[0].batch
    assert committed.places == ()
    assert committed.rows.holdings == ()


# --- a failing disk ---


def test_a_put_that_cannot_be_written_is_told_to_nobody_and_answered_with_a_sentence() -> None:
    alpha = ready()
    alpha.handle(alpha.put(NAME, 5, request=3))
    out = alpha.fail("no space left on device")
    assert only(out, f.Answer) == [f.Answer(3, f"{NAME} was not accepted: no space left on device")]
    assert only(out, f.Send) == []
    assert [report.event for report in only(out, f.Report)] == ["disk_failed"]
    assert alpha.replica.debts.open == {}


def test_what_was_not_written_is_not_known_afterwards() -> None:
    alpha = ready()
    first = only(alpha.handle(alpha.put(NAME, 5)), f.Log)[0].entry.record
    alpha.fail()
    assert alpha.replica.ctx.versions(NAME) == []
    heal(alpha)
    again = only(alpha.handle(alpha.put(NAME, 5)), f.Log)[0].entry.record
    assert again.hlc > first.hlc
    assert again.digest == first.digest


def heal(alpha: Bench) -> list[f.Effect]:
    return alpha.tick(5_000)


def test_after_a_failure_nothing_is_accepted_until_a_probe_reaches_the_disk() -> None:
    alpha = ready()
    alpha.handle(alpha.put(NAME, 5))
    alpha.fail()
    (refused,) = only(alpha.handle(alpha.put(NAME, 6, request=4)), f.Answer)
    assert "does not take writes" in refused.error
    assert only(alpha.tick(1_000), f.Commit) == []  # too early for a probe
    healed = heal(alpha)
    assert next(commit.batch for commit in only(healed, f.Commit)) == Batch()
    assert "disk_recovered" in [report.event for report in only(healed, f.Report)]
    assert only(alpha.done(alpha.put(NAME, 6, request=5)), f.Answer)[0].error == ""


def test_a_probe_that_fails_is_made_again() -> None:
    alpha = ready()
    alpha.handle(alpha.put(NAME, 5))
    alpha.fail()
    for _ in range(3):
        alpha.now_ms += 5_000
        assert only(alpha.handle(e.Timer("tick")), f.Commit)
        alpha.fail()
        assert only(alpha.handle(alpha.put(NAME, 6, request=4)), f.Answer)[0].error != ""
    heal(alpha)
    assert only(alpha.done(alpha.put(NAME, 6, request=5)), f.Answer)[0].error == ""


def test_rows_of_a_peer_that_could_not_be_written_are_heard_again() -> None:
    """Remembered as seen is only what is committed."""
    alpha = ready()
    theirs = record("npz/training/a.npz", 9)
    alpha.hears("beta", m.RowsMessage(Rows((theirs,))))
    assert only(alpha.fail(), f.Send) == []
    heal(alpha)
    (again,) = only(alpha.hears("beta", m.RowsMessage(Rows((theirs,)))), f.Commit)
    assert again.batch.rows.records == (theirs,)


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("checkpoint/../x", "'..' is not allowed"),
        ("checkpoint/a\0b", "control character"),
        ("checkpoint/" + "x" * 300, "more than 255 bytes"),
        ("checkpoint/\ud800", "UTF-8"),
        ("nokind/x", "there is no such kind"),
        ("spore/revoked/beta", "there is no such kind"),
        ("checkpoint/.spore/x", "own folder"),
        ("checkpoint/peers/beta/x", "own folder"),
        ("game/beta/games/x.db", "carry the node that wrote it"),
        ("game/alpha/.spore/store", "own folder"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused_before_anything_is_written(name: str, why: str) -> None:
    alpha = ready()
    out = alpha.handle(replace(alpha.put("checkpoint/a", 5, request=3), name=name))
    assert [type(effect) for effect in out] == [f.Answer]
    (answer,) = only(out, f.Answer)
    assert why in answer.error
    assert "\n" not in answer.error


def test_what_nobody_waits_for_is_refused_in_the_log() -> None:
    alpha = ready()
    (report,) = alpha.handle(alpha.put("nokind/x", 5))
    assert isinstance(report, f.Report)
    assert (report.level, report.event) == ("error", "not_accepted")


def test_a_full_disk_refuses_bytes_from_the_command_line_but_keeps_what_lies_there_already() -> None:
    """A full node still evacuates: a file in a watched folder takes no more room, and is sent away."""
    alpha = ready()
    alpha.done(e.DiskChanged(False, False, 1 << 40, 1 << 40))
    (answer,) = only(alpha.handle(alpha.put(NAME, 5, request=3, watched=False)), f.Answer)
    assert "min_free_bytes" in answer.error
    made = alpha.accepted(NAME, 6)
    assert [(peer, offer.parcels) for peer, offer in sent(alpha.effects, m.Offer)] == [
        ("beta", (Parcel(made),)),
        ("gamma", (Parcel(made),)),
    ]


# --- versions ---


def test_a_second_file_under_a_name_is_a_new_version_above_the_first() -> None:
    alpha = ready()
    first, second = alpha.accepted(NAME, 5), alpha.accepted(NAME, 6)
    assert second.order > first.order
    assert alpha.replica.ctx.current(NAME) == second


def test_a_second_put_ranks_above_the_first_even_while_that_is_on_its_way() -> None:
    alpha = ready()
    first, second = (only(alpha.handle(alpha.put(NAME, number)), f.Log)[0].entry.record for number in (5, 6))
    assert second.order > first.order


@pytest.mark.parametrize("jump_ms", [600_000, -600_000])
def test_a_new_version_ranks_above_the_old_one_when_the_wall_clock_jumps(jump_ms: int) -> None:
    alpha = ready()
    first = alpha.accepted(NAME, 5)
    alpha.now_ms += jump_ms
    second = alpha.accepted(NAME, 6)
    alpha.now_ms -= jump_ms
    third = alpha.accepted(NAME, 7)
    assert first.order < second.order < third.order


def test_a_new_version_ranks_above_one_from_the_far_future() -> None:
    alpha = ready()
    ahead = record(NAME, 9, at_ms=NOW + 86_400_000)
    alpha.told("beta", ahead)
    assert alpha.accepted(NAME, 5).hlc == ahead.hlc + 1
    assert alpha.accepted("checkpoint/checkpoints/other", 6).hlc < ahead.hlc


def test_a_name_whose_version_stands_at_the_end_of_time_is_refused_and_the_clock_goes_on() -> None:
    alpha = ready()
    alpha.told("beta", replace(record(NAME, 9), hlc=HLC_MAX))
    for event in (alpha.put(NAME, 5, request=3), e.Remove(3, NAME)):
        (answer,) = only(alpha.done(event), f.Answer)
        assert answer.error.startswith(NAME)
        assert "rank above" in answer.error
    assert alpha.accepted("checkpoint/checkpoints/other", 6).hlc < HLC_MAX


def test_the_same_bytes_again_make_no_new_version() -> None:
    alpha = ready()
    first = alpha.accepted(NAME, 5)
    out = alpha.done(alpha.put(NAME, 5, request=4))
    assert only(out, f.Log) == []
    assert only(out, f.Answer) == [f.Answer(4, "", first)]
    assert alpha.catalogue.versions(NAME) == (first,)


def test_the_same_bytes_while_the_first_put_is_on_its_way_make_no_new_version() -> None:
    alpha = ready()
    alpha.handle(alpha.put(NAME, 5, request=3))
    assert only(alpha.handle(alpha.put(NAME, 5, request=4)), f.Log) == []
    answers = only(alpha.settle(), f.Answer)
    assert [(answer.request, answer.error) for answer in answers] == [(3, ""), (4, "")]
    assert len(alpha.catalogue.versions(NAME)) == 1


def test_bytes_that_are_known_from_a_peer_become_a_holding_and_no_version() -> None:
    """Somebody copied the file here by hand."""
    alpha = ready()
    theirs = record(NAME, 5)
    alpha.told("beta", theirs, holding("beta", 5))
    out = alpha.done(alpha.put(NAME, 5))
    assert only(out, f.Log) == []
    (batch,) = [commit.batch for commit in only(out, f.Commit)]
    assert (batch.rows.records, [h.present for h in batch.rows.holdings]) == ((), [True])
    assert alpha.replica.ctx.holds(digest(5))


def test_going_back_to_older_bytes_is_a_new_version() -> None:
    alpha = ready()
    first, _, third = alpha.accepted(NAME, 5), alpha.accepted(NAME, 6), alpha.accepted(NAME, 5)
    assert third.digest == first.digest
    assert alpha.replica.ctx.current(NAME) == third


def test_a_file_that_is_overwritten_no_longer_holds_what_it_held() -> None:
    alpha = ready()
    put = alpha.put(NAME, 5, source=f.Inline(b"x"))
    alpha.done(put)
    out = alpha.done(alpha.put(NAME, 6, source=f.Inline(b"y")))
    assert [(h.digest, h.present) for h in only(out, f.Commit)[0].batch.rows.holdings] == [
        (digest(6), True),
        (digest(5), False),
    ]


# --- files found without history ---


def test_a_file_without_history_never_outranks_a_written_version() -> None:
    alpha = ready()
    theirs = record(NAME, 9, at_ms=1_000_000)  # a clock that has lost its battery
    alpha.told("beta", theirs)
    out = alpha.done(alpha.put(NAME, 5, known=False))
    (found,) = [log.entry.record for log in only(out, f.Log)]
    assert found.hlc < SCANNED_MAX
    assert alpha.replica.ctx.current(NAME) == theirs
    assert "older_file_found" in [report.event for report in only(out, f.Report)]


def test_files_without_history_rank_among_themselves_by_modification() -> None:
    alpha = ready()
    older, newest, middle = (alpha.accepted(NAME, at, known=False, mtime_s=1_750_000_000 + at) for at in (5, 9, 7))
    assert older.order < middle.order < newest.order < (SCANNED_MAX, "")
    assert alpha.replica.ctx.current(NAME) == newest


def test_files_without_history_never_share_a_stamp() -> None:
    """Two snapshots of one database before the first scan has ended: records of one key must not differ."""
    alpha = ready()
    names = [alpha.accepted("checkpoint/a", number, known=False, watched=False).key for number in range(5, 15)]
    assert len(set(names)) == 10
    assert names == sorted(names)


def test_a_file_without_history_whose_bytes_are_an_older_version_becomes_a_holding() -> None:
    alpha = ready()
    older, newer = record(NAME, 5), record(NAME, 6, at_ms=NOW + 1)
    alpha.told("beta", older, newer)
    out = alpha.done(alpha.put(NAME, 5, known=False))
    assert only(out, f.Log) == []
    assert alpha.replica.ctx.holds(digest(5))
    assert alpha.catalogue.versions(NAME) == (newer, older)


@pytest.mark.parametrize("live", [True, False])
def test_what_a_scan_finds_where_nothing_was_known_is_the_version_it_has_the_bytes_of(live: bool) -> None:
    """We published it and died before the manifest learned it; written while we watch, it is a user's new version."""
    old, new = record(NAME, 5, at_ms=NOW - 2), record(NAME, 6, at_ms=NOW - 1)
    alpha = ready().has(old, new)
    out = alpha.done(alpha.put(NAME, 5, live=live))
    assert bool(only(out, f.Log)) is live
    assert (alpha.replica.ctx.current(NAME) == new) is not live
    assert alpha.replica.ctx.holds(digest(5))
    assert alpha.catalogue.place(PATH) == place(PATH, 5)


def test_older_bytes_that_a_scan_finds_over_a_known_file_are_a_new_version() -> None:
    old, new = record(NAME, 5, at_ms=NOW - 2), record(NAME, 6, at_ms=NOW - 1)
    alpha = ready().has(old, new, holding("alpha", 6), places=[place(PATH, 6)])
    assert only(alpha.done(alpha.put(NAME, 5, live=False)), f.Log)


def test_a_file_without_history_is_written_after_it_like_any_other() -> None:
    alpha = ready()
    found = alpha.accepted(NAME, 5, known=False)
    assert alpha.accepted(NAME, 6).hlc > max(found.hlc, SCANNED_MAX)


# --- deletes ---


def test_a_delete_is_a_tombstone_above_the_current_version() -> None:
    alpha = ready()
    alpha.accepted(NAME, 5)
    out = alpha.handle(e.Remove(4, NAME))
    (tombstone,) = only(out, f.Commit)[0].batch.rows.records
    assert (tombstone.state, tombstone.digest, tombstone.size) == (State.DELETED, NO_DIGEST, 0)
    assert only(out, f.Send, f.Answer) == []
    told = alpha.settle()
    assert only(told, f.Answer) == [f.Answer(4, "", tombstone, durable=True)]
    assert sent(told, m.RowsMessage) == [
        ("beta", m.RowsMessage(Rows((tombstone,)))),
        ("gamma", m.RowsMessage(Rows((tombstone,)))),
    ]


def test_after_a_delete_the_versions_the_holding_and_the_files_go() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    alpha.done(e.Remove(4, NAME))
    out = alpha.tick()
    dropped = [commit.batch for commit in only(out, f.Commit) if commit.batch.forget_records]
    assert [batch.forget_records for batch in dropped] == [(made.key,)]
    assert [(h.digest, h.present) for batch in dropped for h in batch.rows.holdings] == [(digest(5), False)]
    assert [set(unlink.places) for unlink in only(out, f.Unlink) if unlink.places] == [{place(PATH, 5), private(5)}]
    assert f.Release((made,)) in out
    assert alpha.replica.debts.open == {}
    assert [v.state for v in alpha.catalogue.versions(NAME)] == [State.DELETED]


def test_files_go_only_after_the_delete_is_on_the_disk() -> None:
    alpha = ready()
    alpha.accepted(NAME, 5)
    alpha.done(e.Remove(4, NAME))
    alpha.now_ms += 1_000
    assert only(alpha.handle(e.Timer("tick")), f.Unlink) == []
    assert only(alpha.settle(), f.Unlink) != []


def test_a_deleted_version_told_again_stays_deleted() -> None:
    """By a node that was away; a tombstone outlives what it deleted."""
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    alpha.done(e.Remove(4, NAME))
    alpha.tick()
    assert only(alpha.told("beta", made), f.Commit) == []


def test_what_is_put_after_a_delete_is_there_again() -> None:
    alpha = ready()
    alpha.accepted(NAME, 5)
    alpha.done(e.Remove(4, NAME))
    again = alpha.accepted(NAME, 5)
    assert alpha.replica.ctx.current(NAME) == again


def test_there_is_nothing_to_delete_twice() -> None:
    alpha = ready()
    alpha.accepted(NAME, 5)
    alpha.done(e.Remove(4, NAME))
    for name in (NAME, "checkpoint/never-was"):
        (answer,) = only(alpha.handle(e.Remove(5, name)), f.Answer)
        assert "there is no artifact" in answer.error


def test_an_ephemeral_host_deletes_only_what_it_wrote_under_its_own_name() -> None:
    alpha = Bench(of=fleet(Host("alpha", address="alpha:7946", ephemeral=True))).boot().connect("beta")
    alpha.accepted(NAME, 5)
    alpha.accepted("game/alpha/games/x.db", 6)
    (refused,) = only(alpha.handle(e.Remove(4, NAME)), f.Answer)
    assert "persistent host" in refused.error
    assert only(alpha.done(e.Remove(5, "game/alpha/games/x.db")), f.Answer)[0].error == ""


def test_nothing_is_deleted_by_absence() -> None:
    """A user removes the file: the holding is withdrawn, the artifact stays."""
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    for peer in ("beta", "gamma"):
        alpha.receipt(peer, made)
    out = alpha.done(e.Withdrawn(place(PATH, 5), "it was deleted")) + alpha.done(e.Withdrawn(private(5), "gone too"))
    assert [r.state for commit in only(out, f.Commit) for r in commit.batch.rows.records] == []
    assert alpha.catalogue.versions(NAME) == (made,)
    assert not alpha.replica.ctx.holds(digest(5))


# --- losses ---


def test_a_file_that_changes_withdraws_its_holding_once_that_is_written() -> None:
    alpha = ready().has(record(NAME, 5), holding("alpha", 5), places=[place(PATH, 5)])
    out = alpha.handle(e.Withdrawn(place(PATH, 5), "it changed"))
    (commit,) = out
    assert isinstance(commit, f.Commit)
    assert commit.batch.forget_places == (PATH,)
    assert [(h.digest, h.present) for h in commit.batch.rows.holdings] == [(digest(5), False)]
    assert sent(alpha.settle(), m.RowsMessage) == [
        (peer, m.RowsMessage(commit.batch.rows)) for peer in ("beta", "gamma")
    ]


def test_a_holding_stays_while_another_file_of_ours_has_the_bytes() -> None:
    alpha = ready().has(record(NAME, 5), holding("alpha", 5), places=[place(PATH, 5), place("copy", 5)])
    out = alpha.done(e.Withdrawn(place(PATH, 5), "it changed"))
    assert [(commit.batch.rows, commit.batch.forget_places) for commit in only(out, f.Commit)] == [(Rows(), (PATH,))]
    assert alpha.replica.ctx.holds(digest(5))


def test_a_holding_stays_while_another_file_with_the_bytes_is_on_its_way_to_the_disk() -> None:
    """A user moves a watched file: the put of the new path and the loss of the old one come together."""
    alpha = ready().has(record(NAME, 5), holding("alpha", 5), places=[place(PATH, 5)])
    alpha.handle(alpha.put("checkpoint/checkpoints/moved", 5, source=f.Inline(b"x")))
    alpha.handle(e.Withdrawn(place(PATH, 5), "it was moved"))
    alpha.settle()
    assert alpha.replica.ctx.holds(digest(5))
    assert alpha.catalogue.places(digest(5)) == (place("checkpoints/moved", 5),)


def test_two_files_with_the_same_bytes_that_vanish_together_withdraw_their_holding() -> None:
    alpha = ready().has(record(NAME, 5), holding("alpha", 5), places=[place(PATH, 5), place("copy", 5)])
    alpha.handle(e.Withdrawn(place(PATH, 5), "it was deleted"))
    alpha.handle(e.Withdrawn(place("copy", 5), "it was deleted"))
    alpha.settle()
    assert alpha.catalogue.places(digest(5)) == ()
    assert not alpha.replica.ctx.holds(digest(5))


def test_a_file_overwritten_while_its_copy_vanishes_withdraws_the_holding_of_both() -> None:
    alpha = ready().has(record(NAME, 5), holding("alpha", 5), places=[place(PATH, 5), place("copy", 5)])
    alpha.handle(e.Withdrawn(place("copy", 5), "it was deleted"))
    alpha.done(alpha.put(NAME, 6))
    assert not alpha.replica.ctx.holds(digest(5))


def test_a_loss_told_late_does_not_forget_what_lies_at_the_path_by_now() -> None:
    alpha = ready().has(record(NAME, 5), holding("alpha", 5), places=[place(PATH, 5)])
    alpha.handle(alpha.put(NAME, 6))
    alpha.handle(e.Withdrawn(place(PATH, 5), "it changed"))
    alpha.settle()
    assert alpha.catalogue.place(PATH) == place(PATH, 6)


def test_a_loss_that_cannot_be_written_is_forgotten_and_the_place_is_known_again() -> None:
    alpha = ready().has(record(NAME, 5), holding("alpha", 5), places=[place(PATH, 5)])
    alpha.handle(e.Withdrawn(place(PATH, 5), "it was deleted"))
    alpha.fail()
    assert alpha.replica.ctx.places(digest(5)) == [place(PATH, 5)]


def test_a_put_of_bytes_of_which_only_our_statement_is_left_is_written_to_the_log() -> None:
    """The statement says that we hold them; no file and no log entry of ours has them, so these are the only bytes."""
    alpha = ready().has(record(NAME, 5), holding("alpha", 5))
    out = alpha.done(alpha.put(NAME, 5, request=1, watched=False, source=f.Inline(b"x")))
    assert [log.entry.source for log in only(out, f.Log)] == [f.Inline(b"x")]
    assert [answer.error for answer in only(out, f.Answer)] == [""]


def test_what_changed_before_it_was_sent_is_reported_as_lost_by_name() -> None:
    """Accepted by reference: there never was another copy."""
    alpha = Bench().boot()
    made = alpha.accepted(NAME, 5, source=f.Referenced(place(PATH, 5)))
    out = alpha.done(e.Withdrawn(place(PATH, 5), "it changed"))
    (lost,) = [report for report in only(out, f.Report) if report.event == "lost"]
    assert lost.level == "error"
    assert NAME in lost.message
    assert f.Release((made,)) in out
    assert alpha.replica.debts.open == {}


def test_what_stands_in_the_log_is_not_lost_with_its_file() -> None:
    alpha = Bench().boot()
    made = alpha.accepted(NAME, 5, source=f.Inline(b"x"))
    out = alpha.done(e.Withdrawn(place(PATH, 5), "it changed"))
    assert only(out, f.Release) == []
    assert [report.event for report in only(out, f.Report)] == []
    assert list(alpha.replica.debts.open) == [made.key]


@pytest.mark.parametrize("lives", [1, 2])
def test_what_stands_in_a_private_file_is_not_given_up_when_that_is_missing(lives: int) -> None:
    """A store that is away for a moment shows no file at all: the log must still answer for what it accepted."""
    alpha = Bench().boot()
    made = alpha.accepted(NAME, 5)
    if lives == 2:
        entries = [log.entry for log in only(alpha.effects, f.Log)]
        alpha = Bench(boot=2).has(made, places=[place(PATH, 5), private(5)]).boot(pending=entries)
    out = alpha.done(e.Withdrawn(place(PATH, 5), "it is gone")) + alpha.done(e.Withdrawn(private(5), "it is gone"))
    assert only(out, f.Release) == []
    assert [report.event for report in only(out, f.Report)] == []
    assert list(alpha.replica.debts.open) == [made.key]


def test_what_one_other_node_has_is_not_lost() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5, source=f.Referenced(place(PATH, 5)))
    alpha.receipt("beta", made)
    out = alpha.done(e.Withdrawn(place(PATH, 5), "it changed"))
    assert [report.event for report in only(out, f.Report)] == []


# --- declarations ---


def test_a_declaration_is_told_to_everybody_once_it_is_written() -> None:
    alpha = ready()
    out = alpha.handle(e.Declare(4, "spore/revoked/beta", (("until", 7),)))
    (declared,) = only(out, f.Commit)[0].batch.rows.records
    assert only(out, f.Send) == []
    assert declared.key == RecordKey("spore/revoked/beta", declared.hlc, "alpha")
    assert check_name(declared.name)
    told = alpha.settle()
    assert sent(told, m.RowsMessage) == [(peer, m.RowsMessage(Rows((declared,)))) for peer in ("beta", "gamma")]
    assert f.Hangup("beta", "its certificate is revoked") in told


# --- an excluded node ---


def excluded() -> Bench:
    of = fleet(Host("alpha", address="alpha:7946", excluded=True))
    return Bench(of=of).boot().connect("beta", "gamma")


def test_an_excluded_node_accepts_and_sends_but_states_no_holding() -> None:
    alpha = excluded()
    made = alpha.accepted(NAME, 5, watched=False)
    assert [h for commit in only(alpha.effects, f.Commit) for h in commit.batch.rows.holdings] == []
    assert [peer for peer, _ in sent(alpha.effects, m.Offer)] == ["beta", "gamma"]
    out = alpha.receipt("beta", made) + alpha.receipt("gamma", made)
    assert f.Release((made,)) in out
    assert f.Unlink((private(5),)) in out
    assert only(out, f.Publish) == []
