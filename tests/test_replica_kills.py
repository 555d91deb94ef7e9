"""What `tests/kills.py` found in the core, each told as the events that led to it."""

import pytest

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.fleet import Host
from protocol.retention import ROOT_KNOWN_MS_MAX
from protocol.sweeping import FIRST_MS
from protocol.values import Place, Record
from tests.replicas import NOW, Bench, fleet, holding, only, place, private, record, sent

NAME = "checkpoint/checkpoints/step-5"


def owed(bench: Bench) -> set[int]:
    """The stamps of the versions that are at risk at this node."""
    return {debt.record.hlc for debt in bench.replica.debts.own_open()}


def kept(bench: Bench) -> set[int]:
    return {version.hlc for version in bench.catalogue.versions(NAME)}


def test_a_version_is_not_dropped_between_its_row_and_the_news_of_it() -> None:
    """The manifest has a row before `Durable` is handled. Dropped in between, it would be owed to others for ever."""
    alpha = Bench().boot().connect("beta", "gamma")
    alpha.has(holding("beta", 5), holding("gamma", 5))  # under another name: the last version is durable at once
    alpha.accepted(NAME, 9)
    commits = [effect for number in range(1, 6) for effect in only(alpha.handle(alpha.put(NAME, number)), f.Commit)]
    alpha.catalogue.apply([commit.batch for commit in commits])
    alpha.handle(e.Timer("tick"))
    alpha.settle()
    assert owed(alpha) <= kept(alpha)


def test_a_version_that_a_sweep_read_before_it_was_dropped_is_not_owed_afterwards() -> None:
    alpha = Bench().boot().connect("beta", "gamma")
    versions = [alpha.accepted(NAME, number) for number in range(1, 5)]
    (scan,) = only(alpha.tick(FIRST_MS), f.Scan)
    page = [(version, ()) for version in versions]
    for peer in ("beta", "gamma"):
        alpha.receipt(peer, versions[-1])
    dropped = drop_under_way(alpha)
    assert [version.hlc for version in versions if version.hlc in dropped] == [versions[0].hlc]
    alpha.handle(alpha.put(NAME, 7))  # and now the newest is not durable: the rule alone would not drop the first
    alpha.handle(e.Scanned(scan.op, tuple(page), last=True))
    alpha.settle()
    assert owed(alpha) <= kept(alpha)


def drop_under_way(bench: Bench) -> set[int]:
    """A tick that begins to drop versions, and nothing of it on the disk yet."""
    commits = only(bench.handle(e.Timer("tick")), f.Commit)
    return {key.hlc for commit in commits for key in commit.batch.forget_records}


def test_what_the_disk_damaged_is_fetched_again_though_enough_others_hold_it() -> None:
    alpha = Bench().boot().connect("beta", "gamma")
    made = alpha.accepted(NAME, 5)
    for peer in ("beta", "gamma"):
        alpha.receipt(peer, made)
    (named,) = [place for place in alpha.catalogue.places(made.digest) if not place.private]
    alpha.done(e.Withdrawn(named, "it was deleted by a user"))
    assert made.digest not in wanted(alpha)
    alpha.done(e.Withdrawn(named, "its bytes are not those of its digest", damaged=True))
    assert made.digest in wanted(alpha)


def wanted(bench: Bench) -> set[bytes]:
    """The digests that a replica has begun to fetch, or means to."""
    receiving = bench.replica.receiving
    return {*receiving.wanted, *receiving.arriving}


def test_what_a_path_held_before_a_crash_is_withdrawn_when_it_did_not_make_room() -> None:
    """Killed after the rename of a newer version, whose commit and the older one's private name are lost with it."""
    alpha = Bench().boot().connect("beta", "gamma")
    older, newer = record(NAME, 5), record(NAME, 6, at_ms=NOW + 1)
    alpha.holds_from("beta", older)
    assert alpha.replica.ctx.holds(older.digest)
    out = alpha.holds_from("beta", newer)  # nothing made room: the file was found to be the newer one already
    assert alpha.replica.ctx.holds(newer.digest)
    assert not alpha.replica.ctx.holds(older.digest)
    (receipt,) = [message for _, message in sent(out, m.Receipt)]
    assert [holding.digest for holding in receipt.holdings] == [newer.digest]


def test_what_made_room_is_still_held() -> None:
    alpha = Bench().boot().connect("beta", "gamma")
    older, newer = record(NAME, 5), record(NAME, 6, at_ms=NOW + 1)
    alpha.holds_from("beta", older)
    (publish,) = only(alpha.arrives("beta", newer), f.Publish)
    done = tuple((item.record, alpha.published_at(item)) for item in publish.items)
    alpha.done(e.Published(publish.op, done, moved=(("checkpoints/step-5", private(5)),)))
    assert alpha.replica.ctx.holds(newer.digest)
    assert alpha.replica.ctx.holds(older.digest)


@pytest.mark.parametrize(("group", "removed"), [(None, [private(9)]), ("alpha", [])])
def test_what_made_room_and_is_unknown_goes_unless_a_mate_may_have_published_it(
    group: str | None, removed: list[Place]
) -> None:
    """A mate may know a newer version, of which this node has not heard: its bytes are not this node's to remove."""
    hosts = (Host(name, address=f"{name}:7946", nfs_group=group) for name in ("alpha", "beta"))
    alpha = Bench(of=fleet(*hosts)).boot().connect("gamma")
    (publish,) = only(alpha.arrives("gamma", record(NAME, 5, origin="gamma")), f.Publish)
    done = tuple((item.record, alpha.published_at(item)) for item in publish.items)
    out = alpha.done(e.Published(publish.op, done, moved=(("checkpoints/step-5", private(9)),)))
    assert [place for unlink in only(out, f.Unlink) for place in unlink.places] == removed


def dropped(effects: list[f.Effect]) -> set[int]:
    """The stamps of the versions that are being dropped."""
    return {key.hlc for commit in only(effects, f.Commit) for key in commit.batch.forget_records}


def superseded(bench: Bench) -> Record:
    """Four versions of a name that keeps three are told, the newest of them durable; the oldest."""
    versions = [record(NAME, number, origin="delta", at_ms=NOW + number) for number in range(5, 9)]
    bench.told("beta", *versions, holding("beta", 8))
    bench.told("gamma", holding("gamma", 8))
    return versions[0]


def test_no_version_is_dropped_after_a_start_before_the_root_was_read() -> None:
    """Its file may lie there, published and not committed: of no known version, it would pass for a user's new one."""
    alpha = Bench()
    alpha.done(e.Boot((), 0))
    oldest = superseded(alpha.connect("beta", "gamma"))
    assert dropped(alpha.tick()) == set()
    alpha.done(e.RootKnown())
    assert dropped(alpha.tick()) == {oldest.hlc}


def test_a_root_that_is_never_read_to_its_end_does_not_keep_every_version_for_ever() -> None:
    alpha = Bench()
    alpha.done(e.Boot((), 0))
    oldest = superseded(alpha.connect("beta", "gamma"))
    assert dropped(alpha.tick(ROOT_KNOWN_MS_MAX)) == {oldest.hlc}


def test_a_version_is_not_dropped_while_its_bytes_take_their_name() -> None:
    alpha = Bench().boot().connect("beta", "gamma")
    first = record(NAME, 5, origin="delta", at_ms=NOW + 5)
    (publish,) = only(alpha.arrives("beta", first), f.Publish)
    superseded(alpha)
    assert dropped(alpha.tick()) == set()
    done = tuple((item.record, alpha.published_at(item)) for item in publish.items)
    alpha.done(e.Published(publish.op, done))
    assert dropped(alpha.tick()) == {first.hlc}


def test_a_stamp_from_the_future_does_not_keep_others_from_repairing() -> None:
    """Its origin, whose clock was ahead, has lost the file: the first holder makes the missing copy."""
    ahead = record(NAME, 5, origin="gamma", at_ms=NOW + 600_000)
    alpha = Bench().boot().connect("beta", "gamma").has(ahead, holding("alpha", 5), places=[private(5)])
    (scan,) = only(alpha.tick(FIRST_MS), f.Scan)
    out = alpha.done(e.Scanned(scan.op, ((ahead, (holding("alpha", 5),)),), last=True))
    assert [peer for peer, _ in sent(out, m.Offer)] == ["beta"]


def test_a_deleted_file_stays_known_until_it_is_gone_and_is_removed_again_after_a_crash() -> None:
    """Unknown and still there, it would be taken for a user's new file and rise from its grave."""
    alpha = Bench().boot().connect("beta", "gamma")
    made = alpha.accepted(NAME, 5)
    named = next(found for found in alpha.catalogue.places(made.digest) if not found.private)
    alpha.done(e.Remove(4, NAME))
    alpha.tick()
    assert alpha.catalogue.place(named.path) == named
    again = Bench().has(*alpha.catalogue.versions(NAME), places=[named]).boot()
    (scan,) = only(again.tick(FIRST_MS), f.Scan)
    again.done(e.Scanned(scan.op, tuple((version, ()) for version in again.catalogue.versions(NAME)), last=True))
    assert f.Unlink((named,)) in again.tick()
    again.done(e.Withdrawn(named, "it was removed"))
    assert again.catalogue.place(named.path) is None


def test_what_the_log_says_of_where_bytes_lie_is_known_after_a_start() -> None:
    """A file accepted by reference made room for a newer version, and its new place was not committed."""
    before = Bench().boot()
    made = before.accepted(NAME, 5, source=f.Referenced(place("checkpoints/step-5", 5)))
    alpha = Bench().has(made, holding("alpha", 5), places=[place("checkpoints/step-5", 5)])
    alpha.boot([f.Entry(made, f.Kept(private(5)))])
    assert alpha.catalogue.place(private(5).path) == private(5)
    alpha.done(e.Withdrawn(place("checkpoints/step-5", 5), "it was changed"))
    assert alpha.replica.ctx.holds(made.digest)
    assert owed(alpha) == {made.hlc}
