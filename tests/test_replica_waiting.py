"""Who waits is answered, once; a node that leaves sends what is at risk, names what is not safe, and goes in time."""

from typing import Any

import pytest

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.fleet import Host
from protocol.values import Presence, Record
from tests.replicas import NOW, Bench, fleet, holding, member, only, place, record, sent, store_of

NAME = "checkpoint/checkpoints/a"
BUDGET_MS = 8_000


def ready(*peers: str, **facts: Any) -> Bench:
    return Bench(**facts).boot().connect(*(peers or ("beta", "gamma", "delta")))


def answers(effects: list[f.Effect]) -> list[tuple[int, str, int, bool]]:
    return [(a.request, a.error, a.copies, a.durable) for a in only(effects, f.Answer)]


# --- waiting for copies ---


def test_a_put_that_waits_is_answered_by_the_receipt_that_completes_it() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5, request=3, wait_copies=2)
    assert answers(alpha.effects) == []
    assert answers(alpha.receipt("beta", made)) == []
    assert answers(alpha.receipt("gamma", made)) == [(3, "", 2, True)]
    assert answers(alpha.receipt("delta", made)) == []


def test_a_wait_for_more_copies_than_are_owed_is_answered_when_they_are_there() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    alpha.handle(e.Await(3, NAME, 3, 0, 0))
    for peer in ("beta", "gamma"):
        assert answers(alpha.receipt(peer, made)) == []
    assert answers(alpha.receipt("delta", made)) == [(3, "", 3, True)]


def test_a_wait_for_what_is_there_is_answered_at_once() -> None:
    alpha = ready().has(record(NAME, 5), holding("beta", 5), holding("gamma", 5))
    # beta wrote it: its own copy is no receipt
    assert answers(alpha.handle(e.Await(3, NAME, 1, 0, 0))) == [(3, "", 1, True)]
    assert answers(alpha.handle(e.Await(4, NAME, 2, 0, 0))) == []


def test_a_wait_for_domains_is_answered_when_they_are_covered() -> None:
    alpha = ready("beta", "gamma").connect("zeta", domain="elsewhere")
    made = alpha.accepted(NAME, 5)
    alpha.handle(e.Await(3, NAME, 2, 2, 0))
    alpha.receipt("beta", made)
    assert answers(alpha.receipt("gamma", made)) == []
    assert answers(alpha.receipt("zeta", made)) == [(3, "", 3, True)]


def test_more_domains_than_copies_are_waited_for_too() -> None:
    alpha = ready("beta").connect("gamma", domain="y").connect("delta", domain="z")
    made = alpha.accepted(NAME, 5)
    alpha.handle(e.Await(3, NAME, 1, 3, 0))
    assert answers(alpha.receipt("beta", made)) == []
    assert answers(alpha.receipt("gamma", made)) == []
    assert answers(alpha.receipt("delta", made)) == [(3, "", 3, True)]


def test_a_wait_whose_time_is_over_says_how_far_it_got_and_what_is_missing() -> None:
    alpha = ready("beta")
    made = alpha.accepted(NAME, 5)
    alpha.handle(e.Await(3, NAME, 2, 0, NOW + 5_000))
    alpha.receipt("beta", made)
    assert answers(alpha.tick(4_999)) == []
    ((request, error, copies, durable),) = answers(alpha.tick(1))
    assert (request, copies, durable) == (3, 1, False)
    assert NAME in error
    assert "has 1 of 2 receipts" in error
    assert "eligible stores" in error
    assert answers(alpha.tick(60_000)) == []


def test_a_put_whose_wait_times_out_stays_accepted_and_owed() -> None:
    alpha = ready("beta")
    made = alpha.accepted(NAME, 5, request=3, wait_copies=2, deadline_ms=NOW + 1_000)
    ((_, error, _, _),) = answers(alpha.tick())
    assert "it stays accepted here" in error
    assert list(alpha.replica.debts.open) == [made.key]


def test_a_wait_for_something_unknown_is_refused() -> None:
    alpha = ready()
    ((_, error, _, _),) = answers(alpha.handle(e.Await(3, "checkpoint/none", 1, 0, 0)))
    assert "there is no artifact" in error


def test_a_wait_that_is_cancelled_is_not_answered_and_forgotten() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    alpha.handle(e.Await(3, NAME, 2, 0, 0))
    alpha.handle(e.Await(4, NAME, 2, 0, 0))
    assert alpha.handle(e.Cancel(3)) == []
    assert alpha.handle(e.Cancel(99)) == []
    assert alpha.replica.debts.waiting() == 1
    alpha.receipt("beta", made)
    assert [answer[0] for answer in answers(alpha.receipt("gamma", made))] == [4]
    assert alpha.replica.debts.waiting() == 0


def test_who_goes_away_before_the_put_is_durable_leaves_no_wait_behind() -> None:
    """Without a deadline it would stay for ever: the client's connection is closed, nobody cancels twice."""
    alpha = ready()
    alpha.handle(alpha.put(NAME, 5, request=3, wait_copies=2))
    alpha.handle(e.Cancel(3))
    alpha.settle()
    assert alpha.replica.debts.waiting() == 0
    assert alpha.replica.debts.open != {}  # accepted all the same


def test_waits_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.debts.WAITS_MAX", 10)
    alpha = ready()
    alpha.accepted(NAME, 5)
    for request in range(1, 11):
        assert answers(alpha.handle(e.Await(request, NAME, 2, 0, 0))) == []
    ((_, error, _, _),) = answers(alpha.handle(e.Await(11, NAME, 2, 0, 0)))
    assert "ask again later" in error
    alpha.handle(e.Cancel(1))
    assert answers(alpha.handle(e.Await(12, NAME, 2, 0, 0))) == []


def test_two_waits_for_one_artifact_are_each_answered_at_their_own_count() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    alpha.handle(e.Await(3, NAME, 1, 0, 0))
    alpha.handle(e.Await(4, NAME, 2, 0, 0))
    assert [answer[0] for answer in answers(alpha.receipt("beta", made))] == [3]
    assert [answer[0] for answer in answers(alpha.receipt("gamma", made))] == [4]


def test_a_wait_means_the_version_that_was_current_when_it_began() -> None:
    alpha = ready()
    older = alpha.accepted(NAME, 5)
    alpha.handle(e.Await(3, NAME, 2, 0, 0))
    newer = alpha.accepted(NAME, 6)
    for peer in ("beta", "gamma"):
        assert answers(alpha.receipt(peer, newer)) == []
    alpha.receipt("beta", older)
    assert [answer.record for answer in only(alpha.receipt("gamma", older), f.Answer)] == [older]


def test_receipts_of_ephemeral_stores_answer_no_wait_where_there_are_others() -> None:
    alpha = ready("beta", "gamma").connect("delta", "epsilon", ephemeral=True)
    made = alpha.accepted(NAME, 5, request=3, wait_copies=2)
    for peer in ("delta", "epsilon", "beta"):
        assert answers(alpha.receipt(peer, made)) == []
    assert answers(alpha.receipt("gamma", made)) == [(3, "", 4, True)]


# --- flushing ---


def test_a_flush_with_nothing_at_risk_is_answered_at_once() -> None:
    alpha = ready()
    assert answers(alpha.handle(e.Flush(3, NOW + BUDGET_MS, leave=False))) == [(3, "", 0, True)]


def test_a_flush_is_answered_when_the_last_artifact_is_safe() -> None:
    alpha = ready("beta", "gamma")
    made = [alpha.accepted(f"{NAME}{number}", number + 10) for number in range(2)]
    assert answers(alpha.handle(e.Flush(3, NOW + BUDGET_MS, leave=False))) == []
    for version in made:
        for peer in ("beta", "gamma"):
            alpha.receipt(peer, version)
    alpha.tick()
    assert answers(alpha.effects) == [(3, "", 0, True)]


def test_a_flush_waits_for_what_is_just_being_written() -> None:
    alpha = ready("beta")
    alpha.handle(alpha.put(NAME, 5))
    assert answers(alpha.handle(e.Flush(3, NOW + BUDGET_MS, leave=False))) == []


def test_a_flush_whose_time_is_over_says_how_many_are_left() -> None:
    alpha = ready("beta")
    alpha.accepted(NAME, 5)
    alpha.handle(e.Flush(3, NOW + BUDGET_MS, leave=False))
    ((request, error, left, durable),) = answers(alpha.tick(BUDGET_MS))
    assert (request, left, durable) == (3, 1, False)
    assert "1 artifacts are still at risk" in error


def test_a_flush_with_nobody_there_is_answered_at_once() -> None:
    alpha = Bench().boot()
    alpha.accepted(NAME, 5)
    ((request, error, left, _),) = answers(alpha.handle(e.Flush(3, NOW + BUDGET_MS, leave=False)))
    assert (request, left) == (3, 1)
    assert error


# --- leaving ---


def leave(alpha: Bench, budget_ms: int = BUDGET_MS) -> list[f.Effect]:
    return alpha.done(e.Flush(9, alpha.now_ms + budget_ms, leave=True))


def exits(effects: list[f.Effect]) -> list[tuple[Record, ...]]:
    return [leaving.unsafe for leaving in only(effects, f.Exit)]


def test_a_node_with_nothing_at_risk_says_goodbye_and_goes_at_once() -> None:
    alpha = ready("beta", "gamma")
    out = leave(alpha)
    assert [effect for effect in out if isinstance(effect, f.Send | f.Exit)] == [
        f.Send("beta", m.Goodbye("nothing at risk")),
        f.Send("gamma", m.Goodbye("nothing at risk")),
        f.Exit(()),
    ]


def test_a_node_alone_goes_at_once_and_names_what_is_not_safe() -> None:
    alpha = Bench().boot()
    made = alpha.accepted(NAME, 5)
    assert exits(leave(alpha)) == [(made,)]


def test_a_node_goes_as_soon_as_what_was_at_risk_is_safe() -> None:
    alpha = ready("beta", "gamma")
    made = alpha.accepted(NAME, 5)
    assert exits(leave(alpha)) == []
    alpha.receipt("beta", made)
    alpha.receipt("gamma", made)
    out = alpha.tick(50) + alpha.tick(50)  # in between, its row is written down: it takes nothing more
    assert exits(out) == [()]
    assert sent(out, m.Goodbye) == [(peer, m.Goodbye("nothing at risk")) for peer in ("beta", "gamma")]


def test_a_node_goes_at_the_deadline_whatever_is_left_and_names_it() -> None:
    alpha = ready("beta", "gamma")
    safe, unsafe = alpha.accepted(NAME, 5), alpha.accepted(f"{NAME}2", 6)
    leave(alpha)
    alpha.receipt("beta", safe)
    alpha.receipt("gamma", safe)
    alpha.receipt("beta", unsafe)
    assert exits(alpha.tick(BUDGET_MS - 1)) == []
    out = alpha.tick(1)
    assert exits(out) == [(unsafe,)]
    assert {message.why for _, message in sent(out, m.Goodbye)} == {"1 artifacts at risk"}


def test_the_timer_of_a_leaving_node_never_passes_its_deadline() -> None:
    alpha = ready("beta")
    alpha.accepted(NAME, 5)
    out = leave(alpha, 30)
    assert f.SetTimer("flush", NOW + 30) in out


def test_a_node_goes_when_the_last_peer_does() -> None:
    alpha = ready("beta")
    made = alpha.accepted(NAME, 5)
    leave(alpha)
    alpha.done(e.SessionDown("beta", "it was killed"))
    alpha.tick(50)
    assert exits(alpha.tick(50)) == [(made,)]


def test_a_node_that_leaves_waits_for_what_is_just_being_written() -> None:
    alpha = ready("beta")
    alpha.handle(alpha.put(NAME, 5, request=3))
    assert exits(alpha.handle(e.Flush(9, NOW + BUDGET_MS, leave=True))) == []
    alpha.settle()
    assert [answer.error for answer in only(alpha.effects, f.Answer)] == [""]
    assert exits(alpha.tick(BUDGET_MS)) != []


def test_a_disk_that_no_longer_answers_does_not_keep_a_node_from_leaving() -> None:
    """The provider's notice has an end."""
    alpha = ready("beta")
    alpha.handle(alpha.put(NAME, 5, request=3))
    alpha.handle(e.Flush(9, NOW + BUDGET_MS, leave=True))
    alpha.now_ms += BUDGET_MS
    assert exits(alpha.handle(e.Timer("flush"))) == [()]


def test_a_node_leaves_once() -> None:
    alpha = ready("beta")
    assert len(exits(leave(alpha) + leave(alpha) + alpha.tick() + alpha.tick(BUDGET_MS))) == 1


def test_a_leaving_node_accepts_nothing_more_and_says_where_to_go() -> None:
    alpha = ready("beta")
    alpha.accepted(NAME, 5)
    leave(alpha)
    ((_, error, _, _),) = answers(alpha.handle(alpha.put(f"{NAME}2", 6, request=4)))
    assert "stopping" in error


def test_a_node_that_leaves_for_others_is_not_kept_by_what_they_are_owed() -> None:
    """Repairs of other nodes' artifacts go on elsewhere."""
    made = record(NAME, 5, origin="zeta")
    left = member("zeta", presence=Presence.LEFT)
    alpha = Bench().has(left, made, holding("alpha", 5), places=[place("checkpoints/a", 5)]).boot().connect("beta")
    (scan,) = only(alpha.tick(60_000), f.Scan)
    alpha.done(e.Scanned(scan.op, ((made, (holding("alpha", 5),)),), last=True))
    assert list(alpha.replica.debts.open) == [made.key]
    assert exits(leave(alpha)) == [()]


def test_an_ephemeral_host_is_told_the_same_as_any_other() -> None:
    of = fleet(Host("alpha", address="alpha:7946", ephemeral=True))
    alpha = ready("beta", "gamma", of=of)
    made = alpha.accepted(NAME, 5)
    leave(alpha)
    alpha.told("beta", holding("beta", 5, store=store_of("beta")))
    alpha.receipt("gamma", made)
    alpha.tick(50)
    assert exits(alpha.tick(50)) == [()]
