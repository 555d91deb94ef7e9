"""Views: whoever hears the same claims believes the same, and the folds say whether two views differ."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.claims import BUCKETS, Claim, Standing
from protocol.view import NODES_MAX, Base, Entry, View, bucket_of, folded

UNHURRIED = settings(deadline=None)
OWN = Claim("n0", Standing.ALIVE, 1 << 20, 7)

nodes = st.sampled_from([f"n{at}" for at in range(1, 9)])
standings = st.sampled_from(Standing)
claims = st.builds(Claim, nodes, standings, st.integers(1, 4), st.integers(0, 2))


def settled() -> Base:
    """Eight nodes, alive; shared by whoever asks."""
    return Base.build({f"n{at}": Entry(Standing.ALIVE, 1) for at in range(9)})


def believed(view: View) -> dict[str, tuple[int, int, int]]:
    return {node: entry.order for node in sorted(view.nodes()) if (entry := view.get(node)) is not None}


@given(st.lists(claims), st.randoms())
@UNHURRIED
def test_the_order_in_which_claims_are_heard_does_not_matter(heard: list[Claim], random: object) -> None:
    shuffled = list(heard)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = View(settled(), "n0"), View(settled(), "n0")
    for claim in heard:
        one.merge(claim, 5)
    for claim in [*heard, *shuffled]:  # and hearing one again changes nothing
        other.merge(claim, 9)
    assert believed(one) == believed(other)
    assert one.folds(OWN) == other.folds(OWN)
    assert one.alive == other.alive


@given(st.lists(claims), st.lists(nodes))
@UNHURRIED
def test_counts_and_folds_kept_are_those_counted_afresh(heard: list[Claim], forgotten: list[str]) -> None:
    view = View(settled(), "n0")
    for claim in heard:
        view.merge(claim, 5)
    for node in forgotten:
        if not view.lives(node):
            view.forget(node)
    entries = {node: entry for node in view.nodes() if (entry := view.get(node)) is not None}
    afresh = Base.build(entries)
    assert view.alive == afresh.alive
    assert sorted(view.absent()) == sorted(afresh.absent)
    assert view.folds(Claim("n0", Standing.LEFT, 1)) == afresh.folds


@given(st.lists(claims))
@UNHURRIED
def test_a_view_that_starts_from_nothing_ends_like_one_that_shares_a_base(heard: list[Claim]) -> None:
    """What is shared shows nowhere, once the same was heard."""
    everybody = [Claim(f"n{at}", Standing.ALIVE, 1) for at in range(1, 9)]
    shared, own = View(settled(), "n0"), View()
    for claim in everybody + heard:
        shared.merge(claim, 5)
        own.merge(claim, 5)
    assert believed(shared) == believed(own)
    assert shared.folds(OWN) == own.folds(OWN)
    for bucket in range(BUCKETS):
        assert sorted(shared.bucket(bucket), key=str) == sorted(own.bucket(bucket), key=str)


def test_a_change_of_who_is_alive_shows_in_its_bucket_alone() -> None:
    view = View(settled(), "n0")
    before = view.folds(OWN)
    view.merge(Claim("n3", Standing.DEAD, 1), 5)
    changed = [at for at, (old, new) in enumerate(zip(before, view.folds(OWN), strict=True)) if old != new]
    assert changed == [bucket_of("n3")]
    assert folded(before) != folded(view.folds(OWN))


def test_the_base_that_all_share_never_changes() -> None:
    base = settled()
    one, other = View(base, "n0"), View(base, "n1")
    one.merge(Claim("n3", Standing.DEAD, 1), 5)
    one.forget("n3")
    assert one.get("n3") is None
    assert other.lives("n3")
    assert base.entries["n3"].standing is Standing.ALIVE
    assert one.get("n0") is None
    assert other.get("n0") is not None


def test_views_of_the_same_fleet_have_one_fold_whoever_looks() -> None:
    base = settled()
    folds = {folded(View(base, node).folds(Claim(node, Standing.ALIVE, 1))) for node in ("n0", "n1", "n2")}
    assert len(folds) == 1


def test_a_suspicion_is_told_to_others_as_life_and_changes_no_fold() -> None:
    view = View(settled(), "n0")
    before = view.folds(OWN)
    view.merge(Claim("n3", Standing.SUSPECT, 1, 0, "n4"), 5)
    assert view.claim("n3") == Claim("n3", Standing.ALIVE, 1)
    assert view.folds(OWN) == before


def test_the_dead_whom_nobody_knows_are_not_heard_of() -> None:
    view = View()
    assert view.merge(Claim("n1", Standing.DEAD, 5), 1) is None
    assert view.merge(Claim("n1", Standing.LEFT, 5), 1) is None
    assert view.get("n1") is None
    assert view.merge(Claim("n1", Standing.ALIVE, 5), 1) is not None


def test_a_listed_host_counts_as_dead_until_it_is_heard() -> None:
    view = View()
    view.list_host("n1")
    assert not view.lives("n1")
    assert list(view.absent()) == ["n1"]
    assert view.claim("n1") is None, "nothing is known that could be told"
    view.merge(Claim("n1", Standing.ALIVE, 1 << 20), 1)
    view.list_host("n1")
    assert view.lives("n1")


def test_a_view_is_bounded_and_counts_what_it_ignores() -> None:
    view = View()
    for at in range(NODES_MAX + 3):
        view.merge(Claim(f"n{at}", Standing.ALIVE, 1), 1)
    assert view.alive == NODES_MAX
    assert view.ignored == 3
    assert view.merge(Claim("n1", Standing.DEAD, 1), 1) is not None, "who is known goes on being judged"


def test_marks_and_buckets_are_the_same_in_every_process_and_version() -> None:
    """Frozen: nodes of two versions compare folds."""
    assert [bucket_of(f"n{at}") for at in range(4)] == [6, 4, 27, 41]
    assert folded(Base.build({"n1": Entry(Standing.ALIVE, 1 << 20)}).folds) == 0x005C015473F98E02
