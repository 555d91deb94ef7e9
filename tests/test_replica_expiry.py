"""What goes by age, by hand, or with a user's file: only what policy names, and never back from its grave."""

from dataclasses import replace

import pytest

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.clock import scanned
from protocol.fleet import Host, Kind
from protocol.sweeping import FIRST_MS
from protocol.values import Batch, Record, State
from tests.replicas import NOW, Bench, digest, fleet, holding, member, only, place, private, record, sent

DAY_MS = 86_400_000
KINDS = (
    Kind("one", versions=3, expire_after_seconds=86_400.0),
    Kind("kept", versions=3),
    Kind("gone", versions=3, delete="propagate"),
)
OLD, NEW = NOW - DAY_MS - 60_000, NOW - DAY_MS + 3_600_000


def ready() -> Bench:
    return Bench(of=fleet(kinds=KINDS)).boot().connect("beta", "gamma")


def swept(alpha: Bench) -> list[f.Effect]:
    out = alpha.tick(FIRST_MS)
    for scan in only(out, f.Scan):
        page, last = alpha.catalogue.scan(scan.after, scan.limit)
        out += alpha.done(e.Scanned(scan.op, page, last))
    return out + alpha.tick()


def forgotten(effects: list[f.Effect]) -> list[str]:
    return [key.name for commit in only(effects, f.Commit) for key in commit.batch.forget_records]


def unlinked(effects: list[f.Effect]) -> list[str]:
    return [gone.path for unlink in only(effects, f.Unlink) for gone in unlink.places]


def test_what_is_older_than_its_kind_allows_goes_the_newest_too_and_its_bytes_with_it() -> None:
    made = [record("one/old", 5, at_ms=OLD), record("one/new", 6, at_ms=NEW), record("kept/old", 7, at_ms=OLD)]
    places = [replace(place(f"{n}", n), published=True) for n in (5, 6, 7)]
    alpha = ready().has(*made, *(holding("alpha", n) for n in (5, 6, 7)), places=places)
    out = swept(alpha)
    assert forgotten(out) == ["one/old"]
    assert unlinked(out) == ["5"]
    assert not alpha.replica.ctx.holds(digest(5))


def test_a_users_own_file_stays_though_its_version_goes() -> None:
    alpha = ready().has(record("one/old", 5, "alpha", at_ms=OLD), holding("alpha", 5), places=[place("old", 5)])
    out = swept(alpha)
    assert forgotten(out) == ["one/old"]
    assert unlinked(out) == []


def test_what_is_at_risk_is_not_dropped_by_age() -> None:
    alpha = ready()
    made = alpha.accepted("one/x", 5)
    alpha.now_ms += 2 * DAY_MS
    alpha.connect("beta", "gamma")
    assert forgotten(swept(alpha)) == []
    assert [debt.record for debt in alpha.replica.debts.own_open()] == [made]


def test_who_is_offered_what_is_too_old_says_so() -> None:
    alpha = ready()
    (_, take), *_ = sent(alpha.offer("beta", record("one/old", 5, at_ms=OLD)), m.Take)
    assert take.refused == ("it is older than expire_after of the kind one on alpha",)


def test_what_went_by_age_is_not_believed_again() -> None:
    """A node that was away tells it anew."""
    alpha = ready()
    assert only(alpha.told("beta", record("one/old", 5, at_ms=OLD)), f.Commit) == []


def test_an_entry_of_the_log_is_not_released_for_its_age() -> None:
    made = record("one/x", 5, "alpha", at_ms=OLD)
    alpha = Bench(of=fleet(kinds=KINDS))
    alpha.done(e.Boot((f.Entry(made, f.Kept(private(5))),), 0))
    assert only(alpha.effects, f.Release) == []
    assert [debt.record for debt in alpha.replica.debts.own_open()] == [made]


def test_while_a_hosts_file_is_rolled_out_nothing_goes_by_age() -> None:
    alpha = Bench(of=fleet(kinds=KINDS)).boot().connect("beta").connect("gamma", policy_hash="another")
    alpha.has(record("one/old", 5, at_ms=OLD))
    assert forgotten(swept(alpha)) == []


def test_a_file_found_without_history_is_as_old_as_its_modification() -> None:
    made = replace(record("one/x", 5), hlc=scanned((NOW - 2 * DAY_MS) // 1000))
    young = replace(record("one/y", 6), hlc=scanned((NOW - 3_600_000) // 1000))
    assert forgotten(swept(ready().has(made, young))) == ["one/x"]


# --- rm --expire ---


def removed(effects: list[f.Effect]) -> list[Record]:
    batches: list[Batch] = [commit.batch for commit in only(effects, f.Commit)]
    return [made for batch in batches for made in batch.rows.records if made.state is State.DELETED]


def test_a_name_that_was_written_meanwhile_stays() -> None:
    alpha = ready().has(record("kept/x", 5, at_ms=NOW - 1_000))
    out = alpha.done(e.Remove(3, "kept/x", before_ms=NOW - 2_000))
    assert removed(out) == []
    assert "has a newer version" in only(out, f.Answer)[0].error
    assert [made.name for made in removed(alpha.done(e.Remove(4, "kept/x", before_ms=NOW)))] == ["kept/x"]


# --- a user deletes a watched file ---


def deleted(alpha: Bench, path: str, number: int, **facts: bool) -> list[f.Effect]:
    return alpha.done(e.Withdrawn(place(path, number), "a user deleted it", **facts))


def holder(kind: str, origin: str = "alpha") -> Bench:
    made = record(f"{kind}/x", 5, origin)
    return ready().has(made, holding("alpha", 5), holding("beta", 5), holding("gamma", 5), places=[place("x", 5)])


def test_a_deleted_file_means_a_delete_only_where_the_kind_says_so() -> None:
    assert removed(deleted(holder("kept"), "x", 5, removed=True)) == []
    assert [made.name for made in removed(deleted(holder("gone"), "x", 5, removed=True))] == ["gone/x"]


@pytest.mark.parametrize("facts", [{}, {"damaged": True}])
def test_a_file_that_nobody_saw_being_deleted_or_that_the_disk_spoilt_means_none(facts: dict[str, bool]) -> None:
    assert removed(deleted(holder("gone"), "x", 5, **facts)) == []


def test_a_file_of_an_older_version_means_none() -> None:
    alpha = holder("gone").has(record("gone/x", 6, at_ms=NOW + 5))
    assert removed(deleted(alpha, "x", 5, removed=True)) == []


def test_what_we_gave_up_ourselves_means_none() -> None:
    """Our statement was withdrawn before the file went."""
    others = [holding(node, 5) for node in ("beta", "gamma")]
    alpha = ready().has(record("gone/x", 5, "beta"), *others, places=[place("x", 5)])
    assert removed(deleted(alpha, "x", 5, removed=True)) == []


def test_another_place_of_the_same_bytes_means_none() -> None:
    assert removed(deleted(holder("gone"), "elsewhere", 5, removed=True)) == []


def test_an_ephemeral_host_may_not_delete_so_what_others_wrote() -> None:
    of = fleet(Host("alpha", address="alpha:7946", ephemeral=True), kinds=KINDS)
    alpha = Bench(of=of).boot().connect("beta", "gamma")
    alpha.has(record("gone/x", 5, "beta"), holding("alpha", 5), member("beta"), places=[place("x", 5)])
    out = deleted(alpha, "x", 5, removed=True)
    assert removed(out) == []
    assert [report.event for report in only(out, f.Report)] == ["not_accepted"]
