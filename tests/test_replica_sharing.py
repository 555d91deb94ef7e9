"""Mates of a shared root: believed once seen, contradicted aloud, and served from as if the files were our own."""

from dataclasses import replace

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.fleet import Host, Kind
from protocol.sharing import CACHED_MS_MAX, LOOK_MS
from tests.replicas import NOW, Bench, digest, fleet, holding, only, place, record, sent, store_of

KINDS = (Kind("npz"),)
OURS = store_of("alpha")
NONCE = b"\7" * 16
GROUP = tuple(Host(node, address=f"{node}:7946", nfs_group="alpha") for node in ("alpha", "beta"))


def ready(*hosts: Host) -> Bench:
    return Bench(of=fleet(*hosts, kinds=KINDS)).boot().connect("beta", store=OURS).connect("gamma", "delta")


def looks(effects: list[f.Effect]) -> list[tuple[str, bytes]]:
    return [(look.peer, look.nonce) for look in only(effects, f.LookForMark)]


def reported(effects: list[f.Effect]) -> list[str]:
    return [report.event for report in only(effects, f.Report) if report.event.startswith("mate_")]


def test_a_mark_is_written_at_the_start_and_told_to_whoever_states_our_store() -> None:
    alpha = Bench(of=fleet(kinds=KINDS))
    (mark,) = only(alpha.done(e.Boot((), 0)), f.Mark)
    alpha.connect("beta", store=OURS).connect("gamma")
    assert sent(alpha.tick(), m.Shares) == [("beta", m.Shares(OURS, mark.nonce))]
    assert sent(alpha.tick(), m.Shares) == []


def test_a_mate_is_believed_once_its_mark_was_seen() -> None:
    alpha = ready()
    assert looks(alpha.hears("beta", m.Shares(OURS, NONCE))) == [("beta", NONCE)]
    assert not alpha.replica.sharing.mates["beta"].seen
    out = alpha.done(e.MarkSeen("beta", NONCE, True))
    assert only(out, f.Share) == [f.Share()]
    assert reported(out) == ["mate_found"]  # the hosts file does not say so
    assert alpha.replica.sharing.mates["beta"].seen


def test_a_mate_that_the_hosts_file_names_is_no_news() -> None:
    alpha = ready(*GROUP)
    alpha.hears("beta", m.Shares(OURS, NONCE))
    assert reported(alpha.done(e.MarkSeen("beta", NONCE, True)) + alpha.tick()) == []


def test_a_mark_is_looked_for_longer_than_a_client_caches() -> None:
    alpha = ready()
    alpha.hears("beta", m.Shares(OURS, NONCE))
    spent = 0
    while spent < CACHED_MS_MAX - LOOK_MS:
        assert reported(alpha.done(e.MarkSeen("beta", NONCE, False))) == []
        assert looks(alpha.tick(LOOK_MS)) == [("beta", NONCE)]
        spent += LOOK_MS
    alpha.tick(LOOK_MS)
    assert reported(alpha.done(e.MarkSeen("beta", NONCE, False))) == ["mate_contradicted"]
    (sentence,) = alpha.replica.sharing.contradictions().values()
    assert "one is a copy" in sentence
    assert reported(alpha.tick(LOOK_MS) + alpha.done(e.MarkSeen("beta", NONCE, False))) == []  # said once


def test_a_mark_of_an_earlier_life_proves_nothing() -> None:
    alpha = ready()
    alpha.hears("beta", m.Shares(OURS, NONCE))
    alpha.hears("beta", m.Shares(OURS, rb"\8" * 16))
    assert only(alpha.done(e.MarkSeen("beta", NONCE, True)), f.Share) == []


def test_who_states_another_store_is_not_looked_for() -> None:
    alpha = ready()
    assert looks(alpha.hears("gamma", m.Shares(store_of("gamma"), NONCE))) == []


def test_a_hosts_file_that_names_a_mate_with_another_store_is_contradicted() -> None:
    group = tuple(Host(node, address=f"{node}:7946", nfs_group="alpha") for node in ("alpha", "gamma"))
    alpha = ready(*group)
    assert reported(alpha.tick()) == ["mate_contradicted"]
    assert reported(alpha.tick()) == []  # said once
    assert "gamma shares our root, and it has another" in alpha.replica.sharing.contradictions()["gamma"]


# --- what a mate holds ---


def test_what_a_mate_states_in_our_store_is_looked_for_at_once() -> None:
    alpha = ready()
    out = alpha.told("beta", record("npz/x", 5, "gamma"), holding("beta", 5, store=OURS))
    assert [(look.record.name, look.path) for look in only(out, f.Index)] == [("npz/x", "x")]


def test_what_is_found_is_known_and_the_mate_goes_on_stating_it_alone() -> None:
    alpha, made = ready(), record("npz/x", 5, "gamma")
    alpha.told("beta", made, holding("beta", 5, store=OURS))
    alpha.done(e.Indexed(made, replace(place("x", 5), published=True)))
    assert [known.path for known in alpha.catalogue.places(digest(5))] == ["x"]
    assert [held.node for held in alpha.catalogue.holdings(digest(5))] == ["beta"]


def test_what_does_not_show_or_is_no_longer_stated_is_left_alone() -> None:
    alpha, made = ready(), record("npz/x", 5, "gamma")
    alpha.told("beta", made, holding("beta", 5, store=OURS))
    assert only(alpha.done(e.Indexed(made, None)), f.Commit) == []
    alpha.told("beta", holding("beta", 5, store=OURS, seq=NOW << 17, present=False))
    assert only(alpha.done(e.Indexed(made, place("x", 5))), f.Commit) == []


def test_a_fetcher_asks_every_mate_of_a_store_that_holds() -> None:
    alpha = Bench(of=fleet(kinds=KINDS)).boot()
    alpha.connect("beta", "gamma", store=store_of("shared")).connect("delta")
    alpha.told("beta", record("npz/x", 5, "delta"), holding("beta", 5, store=store_of("shared")))
    assert sorted(alpha.replica.receiving.sources(digest(5))) == ["beta", "gamma"]


def test_of_a_group_the_first_that_may_receive_fetches_for_all() -> None:
    """The one before it is full: its mate fetches instead."""
    beta = Bench("beta", of=fleet(kinds=KINDS), store=OURS).boot().connect("alpha", store=OURS)
    assert not beta.replica.receiving.policy.receives_for_store()
    full = replace(beta.replica.members.alive["alpha"], accepting=False, seq=NOW << 17)
    beta.told("alpha", full)
    assert beta.replica.receiving.policy.receives_for_store()
