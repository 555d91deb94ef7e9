"""The replica forgets by rule: versions beyond the kind's count, only once the newest is safe, never what is needed."""

from dataclasses import replace
from typing import Any

from protocol import effects as f
from protocol import events as e
from protocol.fleet import Kind
from protocol.values import Batch, Record, RecordKey, State
from tests.replicas import NOW, Bench, digest, fleet, holding, member, only, place, private, record, store_of

KINDS = (Kind("two", versions=2), Kind("one", versions=1), Kind("also", versions=1))
NAME = "one/x"


def ready(**facts: Any) -> Bench:
    return Bench(of=fleet(kinds=KINDS, **facts)).boot().connect("beta", "gamma")


def drops(effects: list[f.Effect]) -> list[Batch]:
    return [commit.batch for commit in only(effects, f.Commit) if commit.batch.forget_records]


def forgotten(effects: list[f.Effect]) -> set[RecordKey]:
    return {key for batch in drops(effects) for key in batch.forget_records}


def unlinked(effects: list[f.Effect]) -> list[str]:
    return [gone.path for unlink in only(effects, f.Unlink) for gone in unlink.places]


def settle(alpha: Bench, made: Record) -> list[f.Effect]:
    return alpha.receipt("beta", made) + alpha.receipt("gamma", made) + alpha.tick()


def test_an_older_version_goes_once_the_newest_is_durable_and_not_before() -> None:
    alpha = ready()
    older = alpha.accepted(NAME, 5)
    newer = alpha.accepted(NAME, 6)
    assert drops(alpha.tick() + alpha.receipt("beta", newer) + alpha.tick()) == []
    out = alpha.receipt("gamma", newer) + alpha.tick()
    assert forgotten(out) == {older.key}
    assert alpha.catalogue.versions(NAME) == (newer,)


def test_a_newest_version_that_loses_its_copies_protects_the_older_one() -> None:
    """Evict only against receipts for the current digest, looked at again just before."""
    alpha = ready()
    alpha.accepted(NAME, 5)
    newer = alpha.accepted(NAME, 6)
    alpha.receipt("beta", newer)
    alpha.receipt("gamma", newer)
    alpha.told("gamma", holding("gamma", 6, seq=NOW << 17, present=False))
    assert drops(alpha.tick()) == []


def test_while_a_hosts_file_is_rolled_out_nothing_is_dropped_by_count() -> None:
    """The other file may keep more versions."""
    alpha = Bench(of=fleet(kinds=KINDS)).boot().connect("beta").connect("gamma", policy_hash="another")
    older, newer = alpha.accepted(NAME, 5), alpha.accepted(NAME, 6)
    assert drops(settle(alpha, newer) + alpha.tick()) == []
    alpha.told("gamma", replace(member("gamma", policy_hash=alpha.fleet.hash[:16]), seq=NOW << 17))
    assert forgotten(alpha.tick()) == {older.key}


def test_a_delete_counts_while_a_hosts_file_is_rolled_out() -> None:
    alpha = Bench(of=fleet(kinds=KINDS)).boot().connect("beta").connect("gamma", policy_hash="another")
    older = alpha.accepted(NAME, 5)
    settle(alpha, older)
    alpha.done(e.Remove(4, NAME))
    assert forgotten(alpha.tick()) == {older.key}


def test_as_many_versions_are_kept_as_the_kind_says() -> None:
    alpha = ready()
    made = [alpha.accepted("two/x", number) for number in (5, 6, 7, 8)]
    out = settle(alpha, made[-1])
    assert forgotten(out) == {version.key for version in made[:2]}


def test_the_bytes_of_a_dropped_version_go_after_the_drop_is_written() -> None:
    alpha = ready().has(record(NAME, 5), holding("alpha", 5), places=[private(5)])
    newer = alpha.accepted(NAME, 6)
    alpha.receipt("beta", newer)
    alpha.receipt("gamma", newer)
    alpha.now_ms += 1_000
    assert unlinked(alpha.handle(e.Timer("tick"))) == []
    assert unlinked(alpha.settle()) == [private(5).path]
    assert not alpha.replica.ctx.holds(digest(5))


def test_a_drop_that_cannot_be_written_removes_nothing() -> None:
    alpha = ready().has(record(NAME, 5), holding("alpha", 5), places=[private(5)])
    newer = alpha.accepted(NAME, 6)
    alpha.receipt("beta", newer)
    alpha.receipt("gamma", newer)
    alpha.now_ms += 1_000
    alpha.handle(e.Timer("tick"))
    assert unlinked(alpha.fail()) == []
    assert alpha.replica.ctx.holds(digest(5))
    assert alpha.catalogue.places(digest(5)) == (private(5),)


def test_a_users_own_file_is_never_removed_because_a_newer_version_exists() -> None:
    alpha = ready().has(record(NAME, 5), holding("alpha", 5), places=[place("somewhere/else", 5)])
    newer = alpha.accepted(NAME, 6)
    assert unlinked(settle(alpha, newer)) == [private(6).path]  # the private copy of what is durable by now


def test_bytes_that_another_name_needs_stay() -> None:
    alpha = ready().has(record(NAME, 5), record("also/y", 5), holding("alpha", 5), places=[private(5)])
    newer = alpha.accepted(NAME, 6)
    out = settle(alpha, newer)
    assert len(forgotten(out)) == 1
    assert private(5).path not in unlinked(out)
    assert alpha.replica.ctx.holds(digest(5))


def test_bytes_that_are_being_put_again_stay() -> None:
    """A user goes back to an older file while the rule drops it: its only private copy must not be removed."""
    alpha = ready().has(record(NAME, 5), holding("alpha", 5), places=[private(5)])
    newer = alpha.accepted(NAME, 6)
    alpha.receipt("beta", newer)
    alpha.receipt("gamma", newer)
    alpha.handle(alpha.put("also/y", 5, watched=False))
    alpha.now_ms += 1_000
    alpha.handle(e.Timer("tick"))
    out = alpha.settle()
    assert private(5).path not in unlinked(out)
    assert alpha.catalogue.places(digest(5)) == (private(5),)
    assert alpha.replica.ctx.holds(digest(5))


def test_bytes_that_are_put_again_while_the_drop_is_written_stay() -> None:
    alpha = ready().has(record(NAME, 5), holding("alpha", 5), places=[private(5)])
    newer = alpha.accepted(NAME, 6)
    alpha.receipt("beta", newer)
    alpha.receipt("gamma", newer)
    alpha.now_ms += 1_000
    assert forgotten(alpha.handle(e.Timer("tick")))
    alpha.handle(alpha.put("also/y", 5, watched=False))
    assert private(5).path not in unlinked(alpha.settle())
    assert alpha.catalogue.places(digest(5)) == (private(5),)
    assert alpha.replica.ctx.holds(digest(5))


def test_an_older_version_at_risk_is_no_longer_owed_once_the_newest_is_durable() -> None:
    alpha = ready()
    older = alpha.accepted(NAME, 5)
    newer = alpha.accepted(NAME, 6)
    out = settle(alpha, newer)
    assert [report.event for report in only(out, f.Report)] == ["superseded"]
    assert older in [r for release in only(out, f.Release) for r in release.records]
    assert alpha.replica.debts.open == {}


def test_a_dropped_version_told_again_is_no_news() -> None:
    alpha = ready()
    older = alpha.accepted(NAME, 5)
    settle(alpha, alpha.accepted(NAME, 6))
    assert alpha.told("beta", older) == []


def test_a_tombstone_drops_everything_below_it_and_nothing_above() -> None:
    alpha = ready()
    below = [record(NAME, number, at_ms=NOW + number) for number in (1, 2)]
    above = record(NAME, 9, at_ms=NOW + 9)
    tombstone = replace(record(NAME, 0, at_ms=NOW + 5), state=State.DELETED, size=0)
    alpha.told("beta", *below, above, tombstone)
    alpha.tick()
    assert alpha.catalogue.versions(NAME) == (above, tombstone)


def test_a_tombstone_that_arrives_before_what_it_deletes_deletes_it_all_the_same() -> None:
    alpha = ready()
    tombstone = replace(record(NAME, 0, at_ms=NOW + 5), state=State.DELETED, size=0)
    alpha.told("beta", tombstone)
    assert alpha.told("gamma", record(NAME, 1)) == []


DAYS_MS = 24 * 3600 * 1000


def test_a_tombstone_goes_after_120_days_and_not_before() -> None:
    alpha = ready()
    tombstone = replace(record(NAME, 0), state=State.DELETED, size=0)
    alpha.told("beta", tombstone)
    alpha.now_ms += 119 * DAYS_MS
    alpha.replica.retention.committed(tombstone)
    assert drops(alpha.tick()) == []
    alpha.now_ms += 1 * DAYS_MS
    alpha.replica.retention.committed(tombstone)
    assert forgotten(alpha.tick()) == {tombstone.key}
    assert alpha.catalogue.versions(NAME) == ()
    assert alpha.told("gamma", tombstone) == []  # from whom it has not gone yet


def test_a_tombstone_of_old_deletes_what_is_left_below_it_before_it_goes() -> None:
    alpha = ready()
    tombstone = replace(record(NAME, 0, at_ms=NOW + 5), state=State.DELETED, size=0)
    alpha.told("gamma", record(NAME, 1))
    alpha.now_ms += 121 * DAYS_MS
    alpha.told("beta", tombstone)
    alpha.tick()
    assert alpha.catalogue.versions(NAME) == (tombstone,)
    alpha.replica.retention.committed(tombstone)
    alpha.tick()
    assert alpha.catalogue.versions(NAME) == ()


def test_a_version_written_after_a_delete_outlives_the_tombstone() -> None:
    alpha = ready()
    tombstone, later = replace(record(NAME, 0), state=State.DELETED, size=0), record(NAME, 2, at_ms=NOW + 5)
    alpha.told("beta", tombstone, later)
    alpha.now_ms += 121 * DAYS_MS
    alpha.replica.retention.committed(later)
    alpha.tick()
    assert alpha.catalogue.versions(NAME) == (later,)


def test_versions_of_a_kind_that_is_not_in_our_hosts_file_are_all_kept() -> None:
    """The file is being rolled out: what the kind keeps is not ours to guess."""
    alpha = ready()
    versions = [record("later/x", number, at_ms=NOW + number) for number in (1, 2, 3)]
    alpha.told("beta", *versions)
    assert drops(alpha.tick()) == []
    assert alpha.catalogue.versions("later/x") == tuple(reversed(versions))


def test_of_a_declaration_only_the_newest_is_kept() -> None:
    alpha = ready()
    first, second = (record("spore/revoked/zeta", 0, at_ms=NOW + at) for at in (1, 2))
    alpha.told("beta", first, second)
    alpha.tick()
    assert alpha.catalogue.versions("spore/revoked/zeta") == (second,)


def test_two_nodes_that_heard_the_same_in_another_order_keep_the_same() -> None:
    versions = [record("two/x", number, at_ms=NOW + number) for number in range(1, 6)]
    held = [holding(node, 5) for node in ("beta", "gamma", "delta")]
    kept = []
    for order in (versions, versions[::-1]):
        alpha = ready()
        for version in order:
            alpha.told("beta", version)
        alpha.told("beta", *held)
        alpha.tick()
        alpha.tick()
        kept.append(alpha.catalogue.versions("two/x"))
    assert kept[0] == kept[1] == tuple(versions[:2:-1])


def test_what_a_mate_of_a_shared_store_stated_is_not_withdrawn_by_us() -> None:
    shared = store_of("nfs")
    alpha = Bench(of=fleet(kinds=KINDS), store=shared).boot().connect("beta", "gamma")
    alpha.has(record(NAME, 5, origin="delta"), holding("delta", 5, store=shared))
    newer = record(NAME, 6, origin="beta", at_ms=NOW + 1)
    out = alpha.told("beta", newer, holding("beta", 6), holding("gamma", 6), holding("zeta", 6)) + alpha.tick()
    assert [h for batch in drops(out) for h in batch.rows.holdings] == []
