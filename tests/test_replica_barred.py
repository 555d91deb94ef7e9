"""A host that comes to be excluded, or to refuse a kind, gets nothing more: what runs stops, on both sides."""

from dataclasses import replace

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.fleet import Fleet, Host, Kind
from protocol.receiving import PUSH_GRACE_MS
from protocol.sending import SMALL_BYTES
from tests.replicas import NOW, Bench, fleet, holding, member, only, record, sent

KINDS = (Kind("npz"), Kind("game"))
NAME = "npz/a"


def without(node: str, **facts: object) -> Fleet:
    return fleet(Host(node, address=f"{node}:7946", **{"excluded": True, **facts}), kinds=KINDS)  # type: ignore[arg-type]


def ready(*nodes: str) -> Bench:
    return Bench(of=fleet(kinds=KINDS)).boot().connect(*nodes)


def pushing(alpha: Bench) -> tuple[str, int]:
    """A push under way: to whom, and its number."""
    (peer, offer), *_ = sent(alpha.done(alpha.put(NAME, 5)), m.Offer)
    alpha.handle(e.Received(peer, m.Take(offer.transfer, ("",), ((),))))
    return peer, offer.transfer


def test_an_upload_to_a_host_that_comes_to_be_excluded_stops_and_goes_to_another() -> None:
    alpha = ready("beta", "gamma", "delta")
    peer, transfer = pushing(alpha)
    out = alpha.done(e.FleetChanged(without(peer)))
    assert [(stop.transfer, "may not hold" in stop.why) for stop in only(out, f.Abandon)] == [(transfer, True)]
    (debt,) = alpha.replica.debts.own_open()
    assert peer not in debt.asked
    assert len(debt.asked) == 2
    assert peer not in [to for to, _ in sent(alpha.tick(), m.Offer)]


def test_what_is_of_another_kind_goes_on() -> None:
    alpha = ready("beta", "gamma", "delta")
    peer, _ = pushing(alpha)
    out = alpha.done(e.FleetChanged(without(peer, excluded=False, receive={"game": False})))
    assert only(out, f.Abandon) == []


def test_a_host_that_says_so_itself_gets_nothing_more() -> None:
    """By its own row: its hosts file may be newer than ours."""
    alpha = ready("beta", "gamma", "delta")
    peer, transfer = pushing(alpha)
    out = alpha.told(peer, replace(member(peer, excluded=True), seq=NOW << 17))
    assert [stop.transfer for stop in only(out, f.Abandon)] == [transfer]


def test_what_it_asked_for_itself_goes_on() -> None:
    """An excluded node may get."""
    alpha = ready("beta", "gamma").has(record(NAME, 5, "gamma"), holding("alpha", 5))
    ((_, offer),) = sent(alpha.hears("beta", m.Ask(3, (record(NAME, 5).digest,))), m.Offer)
    alpha.handle(e.Received("beta", m.Take(offer.transfer, ("",), ((),))))
    assert only(alpha.done(e.FleetChanged(without("beta"))), f.Abandon) == []


def test_what_is_coming_in_stops_when_we_come_to_be_excluded_and_its_sender_hears_why() -> None:
    alpha, made = ready("beta", "gamma"), record(NAME, 5)
    alpha.offer("beta", made)
    alpha.handle(e.Reserved("beta", 7, ((),), ("",)))
    out = alpha.done(e.FleetChanged(without("alpha")))
    ((peer, receipt),) = sent(out, m.Receipt)
    assert (peer, receipt.holdings) == ("beta", ())
    assert [why for _, why in receipt.failed] == ["alpha is excluded from sync"]
    assert [(gone.peer, gone.transfer) for gone in only(out, f.Unreserve)] == [("beta", 7)]


def test_a_fetch_by_policy_stops_and_one_for_a_user_goes_on() -> None:
    alpha = ready("beta", "gamma")
    large, wanted = (replace(record(f"npz/{n}", n), size=SMALL_BYTES * 3) for n in (5, 6))
    alpha.told("beta", large, wanted, holding("beta", 5), holding("beta", 6))
    alpha.handle(e.Want(9, wanted))
    alpha.tick(PUSH_GRACE_MS)
    fetched = {key for key in alpha.replica.receiving.incoming if key[0] == "alpha"}
    assert len(fetched) == 2
    alpha.done(e.FleetChanged(without("alpha")))
    assert [incoming.request for incoming in alpha.replica.receiving.incoming.values()] == [9]
