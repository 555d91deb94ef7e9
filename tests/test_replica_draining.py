"""Before a node is stopped, all that depends on it is made to depend on others; then, and only then, it says so."""

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.values import Record
from tests.replicas import Bench, holding, only, place, record, sent

NAME = "checkpoint/checkpoints/a"


def ready(*peers: str) -> Bench:
    return Bench().boot().connect(*(peers or ("beta", "gamma", "delta")))


def drain(alpha: Bench, copies: int = 0, seconds: int = 60) -> list[f.Effect]:
    """Ask, and let every page be read at once; all that followed."""
    return read(alpha, alpha.done(e.Drain(9, copies, alpha.now_ms + seconds * 1000)))


def read(alpha: Bench, effects: list[f.Effect]) -> list[f.Effect]:
    """Answer what is read, until nothing more is."""
    out = list(effects)
    pages = [scan for scan in only(effects, f.Scan) if scan.op < 0]
    while pages:
        scan = pages.pop()
        page, last = alpha.catalogue.scan(scan.after, scan.limit)
        followed = alpha.done(e.Scanned(scan.op, page, last))
        pages += [scan for scan in only(followed, f.Scan) if scan.op < 0]
        out += followed
    return out


def tick(alpha: Bench, after_ms: int = 1_000) -> list[f.Effect]:
    return read(alpha, alpha.tick(after_ms))


def answers(effects: list[f.Effect]) -> list[tuple[int, str, bool]]:
    return [(answer.request, answer.error, answer.durable) for answer in only(effects, f.Answer)]


def offered(effects: list[f.Effect]) -> set[tuple[str, Record]]:
    return {(peer, parcel.record) for peer, offer in sent(effects, m.Offer) for parcel in offer.parcels}


def held(number: int, *nodes: str) -> tuple[Record, ...]:
    """An artifact of beta's that these nodes hold; its record."""
    return (record(NAME, number), *(holding(node, number) for node in nodes))  # type: ignore[return-value]


def test_a_node_on_which_nothing_depends_may_be_stopped_at_once() -> None:
    alpha = ready().has(*held(5, "beta", "gamma", "delta"))
    assert answers(drain(alpha)) == [(9, "", True)]


def test_what_would_have_too_few_copies_is_sent_to_others_first() -> None:
    rows = held(5, "alpha", "beta", "gamma")
    alpha = ready().has(*rows, places=[place("checkpoints/a", 5)])
    out = drain(alpha)
    assert answers(out) == []
    assert offered(out) == {("delta", rows[0])}
    alpha.told("delta", holding("delta", 5))
    assert answers(tick(alpha)) == [(9, "", True)]


def test_a_drained_node_takes_nothing_and_accepts_nothing() -> None:
    alpha = ready()
    drain(alpha)
    assert not alpha.replica.members.own.accepting
    assert not answers(alpha.done(alpha.put(NAME, 5, request=3)))[0][2]
    (answer,) = sent(alpha.offer("beta", record(NAME, 6)), m.Take)
    assert answer[1].refused == (m.LEAVING,)


def test_what_is_at_risk_here_is_waited_for() -> None:
    alpha = ready()
    made = alpha.accepted(NAME, 5)
    assert answers(drain(alpha)) == []
    alpha.receipt("beta", made)
    assert answers(tick(alpha)) == []
    alpha.receipt("gamma", made)
    assert answers(tick(alpha)) == [(9, "", True)]


def test_as_many_copies_as_asked_for_are_enough() -> None:
    """For a short stop one other copy will do: nothing is sent that is there again in a minute."""
    alpha = ready().has(*held(5, "alpha", "beta", "gamma"), places=[place("checkpoints/a", 5)])
    out = drain(alpha, copies=1)
    assert (offered(out), answers(out)) == (set(), [(9, "", True)])


def test_the_only_copy_besides_ours_on_a_node_that_is_away_is_none() -> None:
    rows = held(5, "alpha", "gamma")
    alpha = ready().has(*rows, places=[place("checkpoints/a", 5)])
    alpha.loses("gamma")
    alpha.tick(61_000)
    assert answers(drain(alpha, copies=1)) == []


def test_at_the_deadline_it_says_what_is_in_the_way_and_goes_on() -> None:
    alpha = ready("beta").has(*held(5, "alpha", "beta"), places=[place("checkpoints/a", 5)])
    assert answers(drain(alpha, seconds=5)) == []
    ((request, error, safe),) = answers(tick(alpha, 5_000))
    assert (request, safe) == (9, False)
    assert f"such as {NAME} (only 0 eligible stores of the 2 needed are reachable)" in error
    alpha.connect("gamma", "delta")
    alpha.told("gamma", holding("gamma", 5))
    alpha.told("delta", holding("delta", 5))
    assert any(report.event == "drained" for report in only(tick(alpha), f.Report))


def test_mates_of_a_shared_store_keep_its_copies() -> None:
    alpha = ready("gamma").connect("zeta", store=Bench().store)
    alpha.has(*held(5, "alpha", "gamma"), places=[place("checkpoints/a", 5)])
    alpha.told("zeta", holding("zeta", 5, store=alpha.store))
    out = drain(alpha)
    assert (offered(out), answers(out)) == (set(), [(9, "", True)])


def test_undone_it_accepts_again_and_counts_its_own_copies() -> None:
    alpha = ready("beta").has(*held(5, "alpha", "gamma"), places=[place("checkpoints/a", 5)])
    drain(alpha)
    assert answers(alpha.done(e.Drain(10, 0, 0, undo=True)))[-1][:2] == (10, "")
    alpha.done(e.DiskChanged(True, True, 1 << 40, 1 << 30))
    assert alpha.replica.members.own.accepting
    assert alpha.accepted("checkpoint/checkpoints/b", 6)


def test_the_look_at_the_disk_does_not_make_a_drained_node_accept() -> None:
    alpha = ready()
    drain(alpha)
    alpha.done(e.DiskChanged(True, True, 1 << 40, 1 << 30))
    assert not alpha.replica.members.own.accepting


def test_a_page_at_a_time_is_owed_and_the_last_pass_finds_nothing() -> None:
    alpha = ready()
    rows = [record(f"checkpoint/checkpoints/{number:04}", number) for number in range(1, 1_203)]
    alpha.has(*rows, *(holding(node, r) for r in range(1, 1_203) for node in ("alpha", "beta", "gamma")))
    drain(alpha)
    assert len(alpha.replica.draining._short) == 500
    for first in (1, 501, 1_001):
        alpha.told("delta", *(holding("delta", n) for n in range(first, min(first + 500, 1_203))))
        out = tick(alpha)
    assert answers(out) == [(9, "", True)]
