"""The replica among its peers: what it tells and believes, how it finds differences, whom it dials, how it begins."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.clock import COUNTER_BITS, FUTURE_MS_MAX
from protocol.fleet import Host, Routing
from protocol.membership import DIAL_MS_MAX, REPAIR_GRACE_MS, RESTATE_MS_MIN
from protocol.spreading import PAGE_ROWS
from protocol.sweeping import FIRST_MS, PAGE
from protocol.values import NO_DIGEST, Batch, Member, Presence, Record, Rows, State
from tests.replicas import (
    NAMES,
    NOW,
    Bench,
    digest,
    fleet,
    hello,
    holding,
    member,
    only,
    place,
    private,
    record,
    sent,
    store_of,
)

STAMP = NOW << COUNTER_BITS
NAME = "checkpoint/checkpoints/a"


def ready(*peers: str, **facts: Any) -> Bench:
    return Bench(**facts).boot().connect(*(peers or ("beta", "gamma")))


def commits(effects: list[f.Effect]) -> list[Batch]:
    return [commit.batch for commit in only(effects, f.Commit)]


# --- what is heard ---


def test_rows_from_a_peer_are_committed_and_told_to_nobody_else() -> None:
    """Their author tells everybody; a comparison finds whom that did not reach."""
    alpha = ready()
    rows = Rows((record(NAME, 5),), (holding("beta", 5),))
    assert commits(alpha.hears("beta", m.RowsMessage(rows))) == [Batch(rows)]
    assert sent(alpha.settle(), m.RowsMessage) == []


@pytest.mark.parametrize(
    ("name", "taken"),
    [("model/models/best.pth", False), ("game/beta/games/a.db", True), ("game/gamma/games/a.db", False)],
)
def test_a_host_that_can_vanish_deletes_within_its_own_names_alone(name: str, taken: bool) -> None:
    alpha = ready(of=fleet(Host("beta", address="beta:7946", ephemeral=True)))
    gone = replace(record(name, 5), state=State.DELETED, digest=NO_DIGEST, size=0)
    out = alpha.told("beta", gone)
    assert alpha.catalogue.versions(name) == ((gone,) if taken else ())
    assert [report.event for report in only(out, f.Report)] == ([] if taken else ["delete_refused"])


def test_who_says_what_is_outdated_is_told_what_replaced_it() -> None:
    alpha = ready()
    gone = replace(record(NAME, 5), state=State.DELETED)
    alpha.told("beta", gone, holding("gamma", 5, seq=STAMP + 2, present=False), replace(member("gamma"), seq=STAMP + 2))
    out = alpha.told("gamma", record(NAME, 5), holding("gamma", 5, seq=STAMP + 1), member("gamma"))
    better = Rows(
        (gone,), (holding("gamma", 5, seq=STAMP + 2, present=False),), (replace(member("gamma"), seq=STAMP + 2),)
    )
    assert out == [f.Send("gamma", m.RowsMessage(better))]


def test_what_is_known_is_not_committed_again() -> None:
    alpha = ready()
    rows = (record(NAME, 5), holding("beta", 5), member("zeta"))
    alpha.told("beta", *rows)
    assert alpha.told("gamma", *rows) == []


def test_what_is_on_its_way_to_the_disk_is_not_committed_twice() -> None:
    alpha = ready()
    message = m.RowsMessage(Rows((record(NAME, 5),), (holding("beta", 5),)))
    assert len(commits(alpha.hears("beta", message))) == 1
    assert alpha.hears("gamma", message) == []


def test_of_a_message_only_the_news_is_committed() -> None:
    alpha = ready()
    alpha.told("beta", record(NAME, 5))
    fresh = record(NAME, 6, at_ms=NOW + 1)
    assert commits(alpha.told("beta", record(NAME, 5), fresh)) == [Batch(Rows((fresh,)))]


@pytest.mark.parametrize("row", [holding("beta", 5, seq=STAMP), replace(member("zeta"), seq=STAMP)])
def test_a_statement_is_replaced_by_its_authors_next_and_never_by_an_earlier_one(row: Any) -> None:
    alpha = ready()
    alpha.told("beta", row)
    earlier, later = replace(row, seq=STAMP - 1), replace(row, seq=STAMP + 1)
    assert commits(alpha.told("gamma", earlier)) == []
    assert len(commits(alpha.told("gamma", later))) == 1


def test_a_record_of_the_far_future_is_taken_and_the_clock_does_not_follow_it() -> None:
    alpha = ready()
    ahead = record(NAME, 5, at_ms=NOW + FUTURE_MS_MAX + 1)
    alpha.told("beta", ahead)
    assert alpha.replica.ctx.current(NAME) == ahead
    assert alpha.accepted("checkpoint/other", 6).hlc < STAMP + 1_000


def test_a_record_of_the_near_future_moves_the_clock() -> None:
    alpha = ready()
    ahead = record(NAME, 5, at_ms=NOW + FUTURE_MS_MAX)
    alpha.told("beta", ahead)
    assert alpha.accepted("checkpoint/other", 6).hlc > ahead.hlc


def test_a_message_of_a_peer_without_a_session_is_void() -> None:
    alpha = ready("beta")
    for message in (m.RowsMessage(Rows((record(NAME, 5),))), m.Offer(1, ()), m.Ask(1, (digest(5),)), m.CellsWanted(64)):
        assert alpha.hears("zeta", message) == []


def test_a_second_hello_says_nothing_new() -> None:
    alpha = ready("beta")
    assert alpha.hears("beta", hello("beta", (7, 7))) == []


# --- statements about ourselves ---


def test_a_statement_about_us_that_we_never_made_is_corrected() -> None:
    alpha = ready()
    out = alpha.told("beta", holding("alpha", 5, seq=STAMP + 99))
    (batch,) = commits(out)
    (correction,) = batch.rows.holdings
    assert (correction.key, correction.present) == (holding("alpha", 5).key, False)
    assert correction.seq > STAMP + 99
    assert sent(out, m.RowsMessage) == [(peer, m.RowsMessage(batch.rows)) for peer in ("beta", "gamma")]


def test_what_we_said_in_an_earlier_life_and_still_have_is_said_again() -> None:
    """The manifest was lost and rebuilt; the files are there."""
    alpha = ready().has(record(NAME, 5), places=[place("checkpoints/a", 5)])
    (batch,) = commits(alpha.told("beta", holding("alpha", 5, seq=STAMP + 99)))
    assert [(h.present, h.seq > STAMP + 99) for h in batch.rows.holdings] == [(True, True)]


def test_what_we_said_earlier_does_not_deny_what_is_just_being_written() -> None:
    """The rescan after a lost manifest, while peers stream what they know of us."""
    for said in (STAMP - 99, STAMP + 99_999):
        alpha = ready()
        alpha.handle(alpha.put(NAME, 5))
        alpha.hears("beta", m.RowsMessage(Rows(holdings=(holding("alpha", 5, seq=said),))))
        alpha.settle()
        assert alpha.replica.ctx.holds(digest(5))


def test_an_old_statement_of_ours_changes_nothing() -> None:
    alpha = ready()
    alpha.accepted(NAME, 5)
    out = alpha.told("beta", holding("alpha", 5, seq=1))
    assert commits(out) == []
    assert [message.rows.holdings for _, message in sent(out, m.RowsMessage)] == [alpha.catalogue.holdings(digest(5))]


def test_a_statement_about_another_store_of_ours_is_withdrawn() -> None:
    """Our root was replaced; what lay in the old one is not here."""
    alpha = ready().has(record(NAME, 5), places=[place("checkpoints/a", 5)])
    old = holding("alpha", 5, store=store_of("old"))
    (batch,) = commits(alpha.told("beta", old))
    assert [(h.store, h.present) for h in batch.rows.holdings] == [(store_of("old"), False)]


def test_our_own_row_is_ours_alone() -> None:
    alpha = ready()
    assert alpha.told("beta", replace(member("alpha"), seq=STAMP + 99, accepting=False)) == []
    alpha.done(e.DiskChanged(False, True, 1 << 40, 1 << 39))
    assert alpha.replica.members.own.seq > STAMP + 99  # above what was said, or nobody would hear it


# --- sessions ---


def test_our_hello_says_who_we_are_and_what_we_have() -> None:
    alpha = ready()
    hello = alpha.replica.hello()
    assert (hello.cluster, hello.member.node, hello.boot) == ("test", "alpha", 1)
    assert hello.fold == alpha.catalogue.sketch().fold()


def test_a_node_outside_the_hosts_file_is_introduced_to_the_others() -> None:
    alpha = ready("beta")
    stranger = member("vast-1", ephemeral=True)
    out = alpha.done(e.SessionUp("vast-1", replace(hello("vast-1", alpha.catalogue.sketch().fold()), member=stranger)))
    assert sent(out, m.RowsMessage) == [("beta", m.RowsMessage(Rows(members=(stranger,))))]
    known = alpha.done(e.SessionUp("gamma", hello("gamma", alpha.catalogue.sketch().fold())))
    assert sent(known, m.RowsMessage) == []


def test_rows_are_told_in_pages_of_a_bounded_size() -> None:
    alpha = ready("beta")
    for number in range(PAGE_ROWS + 1):
        alpha.handle(alpha.put(f"checkpoint/{number}", number + 10))
    pages = [message.rows for _, message in sent(alpha.settle(), m.RowsMessage)]
    sizes = [len(rows.records) + len(rows.holdings) + len(rows.members) for rows in pages]
    assert max(sizes) <= PAGE_ROWS
    assert sum(len(rows.records) for rows in pages) == PAGE_ROWS + 1


def test_a_revoked_node_is_hung_up_on() -> None:
    alpha = ready()
    out = alpha.told("gamma", record("spore/revoked/beta", 0, origin="gamma"))
    assert f.Hangup("beta", "its certificate is revoked") in out
    assert [report.event for report in only(out, f.Report)] == ["revoked"]


# --- dialling ---


def dials(effects: list[f.Effect]) -> list[str]:
    return [dial.peer for dial in only(effects, f.Dial)]


def test_every_listed_host_that_has_an_address_is_dialled() -> None:
    alpha = Bench(of=fleet(Host("zeta"))).boot()
    assert dials(alpha.tick()) == ["beta", "delta", "epsilon", "gamma"]
    assert dials(alpha.tick()) == []  # their outcome is not known yet


def test_a_host_that_does_not_answer_is_dialled_for_ever_and_ever_less_often() -> None:
    alpha = Bench().boot()
    dialled_ms = []
    for _ in range(600):
        if "beta" in dials(alpha.tick()):
            dialled_ms.append(alpha.now_ms)
            alpha.handle(e.DialFailed("beta", "it does not answer"))
    waits = [later - earlier for earlier, later in pairwise(dialled_ms)]
    assert dialled_ms[-1] > alpha.now_ms - 2 * DIAL_MS_MAX
    assert max(waits) <= DIAL_MS_MAX + 1_000
    assert waits[0] <= 2_000
    assert len(dialled_ms) < 240


def test_a_peer_whose_session_ends_is_dialled_at_once() -> None:
    alpha = ready(*NAMES[1:])
    assert dials(alpha.done(e.SessionDown("beta", "it was killed"))) == ["beta"]


def test_a_peer_whose_session_ended_lives_until_nobody_reaches_it() -> None:
    alpha = ready(*NAMES[1:])
    alpha.done(e.SessionDown("beta", "the network hiccuped"))
    alpha.tick()
    assert alpha.replica.members.is_alive("beta")
    alpha.loses("gamma")
    assert alpha.replica.members.is_alive("beta")
    assert not alpha.replica.members.is_alive("gamma")


def test_a_peer_that_said_goodbye_is_dialled_all_the_same() -> None:
    alpha = ready(*NAMES[1:])
    out = alpha.done(e.Received("beta", m.Goodbye("")))
    assert {report.level for report in only(out, f.Report)} == {"info"}
    assert not alpha.replica.members.is_alive("beta")
    assert dials(alpha.tick()) == ["beta"]


def test_a_node_heard_of_from_others_is_dialled() -> None:
    alpha = ready(*NAMES[1:])
    alpha.told("beta", member("vast-1", address="10.0.0.9:7946"))
    assert only(alpha.tick(), f.Dial) == [f.Dial("vast-1", "10.0.0.9:7946")]


def test_members_known_from_an_earlier_life_are_dialled() -> None:
    alpha = Bench().has(member("vast-1", address="10.0.0.9:7946")).boot()
    assert "vast-1" in dials(alpha.tick())


def test_nobody_dials_itself() -> None:
    alpha = ready()
    alpha.told("beta", member("alpha"))
    assert "alpha" not in [dial.peer for _ in range(9) for dial in only(alpha.tick(10_000), f.Dial)]


def test_members_beyond_the_bound_are_ignored_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.membership.MEMBERS_MAX", 10)
    alpha = ready()
    out = alpha.told("beta", *(member(f"vast-{number}") for number in range(20)))
    assert len(alpha.replica.members.peers) == 10
    assert {report.event for report in only(out, f.Report)} == {"members_full"}


# --- our own row ---


def members_told(effects: list[f.Effect]) -> list[Member]:
    return [row for _, message in sent(effects, m.RowsMessage) for row in message.rows.members]


def test_what_placement_depends_on_is_told_at_once() -> None:
    alpha = ready("beta")
    (row,) = members_told(alpha.done(e.DiskChanged(False, True, 1 << 40, 1 << 39)))
    assert (row.node, row.accepting) == ("alpha", False)


def test_what_changes_all_the_time_is_told_now_and_then() -> None:
    alpha = ready("beta")
    alpha.tick(RESTATE_MS_MIN)
    told = []
    for step in range(20):
        told += members_told(alpha.done(e.DiskChanged(True, True, 1 << 40, (1 << 39) + step)))
        told += members_told(alpha.tick(RESTATE_MS_MIN // 10))
    assert 1 <= len(told) <= 4


def test_what_we_say_of_ourselves_is_said_again_when_it_could_not_be_written() -> None:
    alpha = ready("beta")
    alpha.tick(RESTATE_MS_MIN)
    alpha.handle(e.DiskChanged(True, True, 1 << 40, 2 << 30))
    alpha.now_ms += RESTATE_MS_MIN
    alpha.handle(e.Timer("tick"))
    alpha.fail()
    again = alpha.tick(RESTATE_MS_MIN)
    assert [x.used_bytes for _, told in sent(again, m.RowsMessage) for x in told.rows.members] == [2 << 30]


def test_what_would_be_lost_if_this_node_died_now_is_told() -> None:
    alpha = ready("beta")
    made = alpha.accepted(NAME, 5)
    (row,) = members_told(alpha.tick(RESTATE_MS_MIN))
    assert (row.at_risk_count, row.at_risk_bytes) == (1, made.size)


def test_a_new_hosts_file_changes_our_row_and_who_is_owed() -> None:
    alpha = ready("beta", "gamma")
    made = alpha.accepted(NAME, 5)
    alpha.receipt("beta", made)
    assert alpha.replica.debts.open
    out = alpha.done(e.FleetChanged(fleet(routing=Routing(min_copies=1))))
    assert alpha.replica.debts.open == {}
    assert f.Release((made,)) in out
    row, _ = members_told(out)
    assert row.policy_hash == alpha.replica.ctx.fleet.hash[:16]


def test_a_full_node_is_no_target_from_the_moment_it_says_so() -> None:
    alpha = ready("beta", "gamma", "delta")
    for full in ("beta", "gamma"):
        alpha.told(full, replace(member(full), seq=STAMP + 1, accepting=False))
    alpha.accepted(NAME, 5)
    assert [peer for peer, _ in sent(alpha.effects, m.Offer)] == ["delta"]


# --- the beginning ---


def entry(made: Record, source: f.Source | None = None) -> f.Entry:
    return f.Entry(made, source or f.Inline(b"x"))


def test_what_the_log_kept_is_owed_again_after_a_restart() -> None:
    made = record(NAME, 5, origin="alpha")
    alpha = Bench().has(made).boot(pending=[entry(made)])
    assert list(alpha.replica.debts.open) == [made.key]
    alpha.connect("beta", "gamma")
    assert [peer for peer, _ in sent(alpha.effects, m.Offer)] == ["beta", "gamma"]


def test_what_the_log_kept_and_the_manifest_lost_is_committed_first() -> None:
    """Power was lost after the log's sync and before the manifest's."""
    made = record(NAME, 5, origin="alpha")
    alpha = Bench()
    out = alpha.handle(e.Boot((entry(made, f.Kept(private(5))),), 0))
    (batch,) = commits(out)
    assert batch.rows.records == (made,)
    assert batch.places == (private(5),)
    assert [h.present for h in batch.rows.holdings] == [True]
    assert alpha.replica.debts.open == {}
    alpha.settle()
    assert list(alpha.replica.debts.open) == [made.key]


def test_what_the_log_kept_and_was_deleted_meanwhile_is_released() -> None:
    made = record(NAME, 5, origin="alpha")
    gone = replace(record(NAME, 0, at_ms=NOW + 1), state=State.DELETED)
    alpha = Bench().has(gone)
    out = alpha.handle(e.Boot((entry(made),), 0))
    assert f.Release((made,)) in out
    assert alpha.replica.debts.open == {}


def test_what_the_log_kept_and_two_others_have_by_now_is_released() -> None:
    made = record(NAME, 5, origin="alpha")
    alpha = Bench().has(made, holding("beta", 5), holding("gamma", 5), places=[place("checkpoints/a", 5)])
    alpha.boot(pending=[entry(made)])
    assert alpha.replica.debts.open == {}
    assert f.Release((made,)) in alpha.effects


def test_stamps_of_this_life_are_above_those_of_the_last_one() -> None:
    last = STAMP + (600_000 << COUNTER_BITS)  # then the wall clock was ten minutes ahead
    alpha = Bench().boot(last_hlc=last)
    assert alpha.accepted(NAME, 5).hlc > last


# --- the sweep ---


def sweep(alpha: Bench, *page: Record) -> list[f.Effect]:
    """The first sweep finds these records."""
    (scan,) = only(alpha.tick(FIRST_MS), f.Scan)
    assert (scan.after, scan.limit) == (("", 0, ""), PAGE)
    return alpha.done(e.Scanned(scan.op, tuple((r, alpha.catalogue.holdings(r.digest)) for r in page), last=True))


def test_the_sweep_reads_page_after_page_and_rests_until_the_next_interval() -> None:
    alpha = ready()
    pages = [record(f"npz/{number}", number + 10) for number in range(2)]
    (scan,) = only(alpha.tick(FIRST_MS), f.Scan)
    (following,) = only(alpha.handle(e.Scanned(scan.op, ((pages[0], ()),), last=False)), f.Scan)
    assert following.after == pages[0].key
    assert only(alpha.handle(e.Scanned(scan.op, ((pages[1], ()),), last=True)), f.Scan) == []
    assert only(alpha.tick(), f.Scan) == []
    assert len(only(alpha.tick(60_000), f.Scan)) == 1


def test_a_page_of_an_earlier_sweep_is_ignored() -> None:
    alpha = ready()
    assert alpha.handle(e.Scanned(99, ((record(NAME, 5), ()),), last=False)) == []


def test_the_sweep_owes_what_has_too_few_copies_and_is_ours() -> None:
    made = record(NAME, 5, origin="alpha")
    alpha = ready().has(made, holding("alpha", 5), places=[place("checkpoints/a", 5)])
    assert [peer for peer, _ in sent(sweep(alpha, made), m.Offer)] == ["beta", "gamma"]


@pytest.mark.parametrize(("away_ms", "repairs"), [(REPAIR_GRACE_MS - FIRST_MS - 1, False), (REPAIR_GRACE_MS, True)])
def test_the_first_live_holder_repairs_what_an_origin_left_that_is_long_gone(away_ms: int, repairs: bool) -> None:
    made = record(NAME, 5, origin="zeta")
    alpha = ready("beta", "gamma", "zeta").has(made, holding("alpha", 5), holding("zeta", 5), places=[place("a", 5)])
    alpha.loses("zeta")
    alpha.now_ms += away_ms
    assert bool(sent(sweep(alpha, made), m.Offer)) is repairs


def test_of_two_live_holders_the_second_in_name_order_leaves_the_repair_to_the_first() -> None:
    made = record(NAME, 5, origin="zeta")
    gamma = Bench("gamma").boot().connect("beta", "delta")
    gamma.has(made, holding("beta", 5), holding("gamma", 5), places=[place("a", 5)])
    gamma.now_ms += REPAIR_GRACE_MS
    assert sent(sweep(gamma, made), m.Offer) == []


def test_a_node_that_left_is_not_waited_for() -> None:
    made = record(NAME, 5, origin="zeta")
    left = replace(member("zeta"), presence=Presence.LEFT)
    alpha = Bench().has(left, made, holding("alpha", 5), places=[place("a", 5)]).boot().connect("beta", "gamma")
    assert [peer for peer, _ in sent(sweep(alpha, made), m.Offer)] != []
