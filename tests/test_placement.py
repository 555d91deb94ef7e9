"""Placement: the same facts give the same answer, nobody is chosen who may not hold, and little moves."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.placement import Pool, Seat, durable, eligible, pool, seat_of, targets
from protocol.values import Member

UNHURRIED = settings(deadline=None)  # a loaded machine is no failure
NOBODY = bytes(range(16))  # the store of an origin outside the group


def store(number: int) -> bytes:
    return bytes([1, number]) * 8


def digest(number: int) -> bytes:
    return number.to_bytes(2, "big") * 16


def member(name: str, number: int, domain: str = "x", **facts: object) -> Member:
    return Member(name, 1, domain=domain, store=store(number), **{"accepting": True, **facts})  # type: ignore[arg-type]


def seat(number: int, domain: str = "x", ephemeral: bool = False) -> Seat:
    return Seat(f"node-{number:02}", store(number), domain, ephemeral)


members = st.lists(
    st.builds(
        Member,
        node=st.sampled_from([f"node-{number:02}" for number in range(12)]),
        seq=st.just(1),
        domain=st.sampled_from(["x", "y", "z"]),
        store=st.integers(0, 7).map(store),  # fewer than nodes: some share one
        ephemeral=st.booleans(),
        excluded=st.booleans(),
        accepting=st.booleans(),
    ),
    max_size=12,
    unique_by=lambda member: member.node,
)
seats = st.lists(
    st.builds(seat, st.integers(0, 11), st.sampled_from(["x", "y", "z"]), st.booleans()),
    max_size=12,
    unique_by=lambda seat: seat.store,
)
digests = st.integers(0, 999).map(digest)
copies = st.integers(1, 4)


# --- who is eligible ---


@UNHURRIED
@given(members, st.integers(0, 7).map(store))
def test_only_who_accepts_is_not_excluded_and_has_another_store_is_eligible(group: list[Member], own: bytes) -> None:
    stated = {(m.node, m.store): m for m in group}
    for chosen in eligible(group, own):
        its = stated[chosen.node, chosen.store]
        assert (its.accepting, its.excluded, its.store != own) == (True, False, True)
        assert chosen == seat_of(its)


@UNHURRIED
@given(members, st.integers(0, 7).map(store))
def test_every_store_that_can_take_has_one_seat(group: list[Member], own: bytes) -> None:
    stores = [chosen.store for chosen in eligible(group, own)]
    assert len(stores) == len({*stores})
    assert {*stores} == {m.store for m in group if m.accepting and not m.excluded} - {own}


def test_of_a_shared_store_the_member_first_in_name_order_that_may_receives() -> None:
    group = [member("c", 1), member("b", 1), member("a", 1, excluded=True), member("d", 2)]
    assert [chosen.node for chosen in eligible(group, NOBODY)] == ["b", "d"]
    assert eligible(group, store(1)) == [seat_of(member("d", 2))]


# --- the pool ---


@UNHURRIED
@given(members, st.randoms(), digests, copies)
def test_equal_facts_in_any_order_give_equal_answers(group: list[Member], chance: object, what: bytes, k: int) -> None:
    shuffled = list(group)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (pool(what, eligible(order, NOBODY), k) for order in (group, shuffled))
    assert one == other
    assert targets(one.seats, k, one.domains) == targets(other.seats, k, other.domains)


@UNHURRIED
@given(seats, st.randoms(), digests, copies)
def test_a_pool_does_not_depend_on_the_order_of_its_seats(
    group: list[Seat], chance: object, what: bytes, k: int
) -> None:
    shuffled = list(group)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert pool(what, group, k) == pool(what, shuffled, k)


@UNHURRIED
@given(seats, digests, copies)
def test_ephemeral_stores_are_in_the_pool_only_when_persistent_ones_are_too_few(
    group: list[Seat], what: bytes, k: int
) -> None:
    persistent = [s for s in group if not s.ephemeral]
    chosen = pool(what, group, k).seats
    assert {s.store for s in chosen} == {s.store for s in (persistent if len(persistent) >= k else group)}
    assert sorted(chosen, key=lambda s: s.ephemeral) == list(chosen)  # persistent ones come first


@pytest.mark.parametrize(
    ("domains", "k", "spread"), [("xyz", 2, 2), ("xyz", 4, 3), ("xxx", 2, 1), ("", 2, 0), ("x", 3, 1)]
)
def test_copies_are_to_lie_in_as_many_domains_as_there_are(domains: str, k: int, spread: int) -> None:
    around = pool(digest(1), [seat(number, domain) for number, domain in enumerate(domains)], k)
    assert around.domains == spread
    assert around.enough == (len(domains) >= k)


def test_a_wish_for_domains_is_kept_as_it_was_stated() -> None:
    assert pool(digest(1), [seat(1), seat(2)], 2, domains=2).domains == 2


# --- the targets ---


@UNHURRIED
@given(seats, digests, copies)
def test_there_are_as_many_targets_as_copies_or_as_stores(group: list[Seat], what: bytes, k: int) -> None:
    around = pool(what, group, k)
    chosen = targets(around.seats, k, around.domains)
    assert len(chosen) == min(k, len(around.seats))
    assert len({s.store for s in chosen}) == len(chosen)
    assert {s.store for s in chosen} <= {s.store for s in around.seats}


@UNHURRIED
@given(seats, digests, copies)
def test_targets_lie_in_two_domains_when_there_are_two(group: list[Seat], what: bytes, k: int) -> None:
    around = pool(what, group, k)
    chosen = targets(around.seats, k, around.domains)
    there = {s.domain for s in around.seats}
    assert len({s.domain for s in chosen}) == min(k, len(there))


@UNHURRIED
@given(seats, digests, copies)
def test_no_ephemeral_store_is_chosen_before_a_persistent_one(group: list[Seat], what: bytes, k: int) -> None:
    around = pool(what, group, k)
    chosen = targets(around.seats, k, around.domains)
    if any(s.ephemeral for s in chosen) and around.domains <= 1:
        left = {s.store for s in around.seats} - {s.store for s in chosen}
        assert not [s for s in around.seats if s.store in left and not s.ephemeral]


@UNHURRIED
@given(seats, digests, copies, st.data())
def test_what_is_held_already_is_not_asked_for_again(
    group: list[Seat], what: bytes, k: int, choice: st.DataObject
) -> None:
    around = pool(what, group, k)
    have = choice.draw(st.lists(st.sampled_from(around.seats), unique=True, max_size=4)) if around.seats else []
    chosen = targets(around.seats, k, around.domains, have)
    assert not {s.store for s in chosen} & {s.store for s in have}
    together = [*have, *chosen]
    if around.enough:
        assert len(together) >= k
        assert len({s.domain for s in together}) >= around.domains


@UNHURRIED
@given(seats, digests, copies)
def test_once_the_targets_hold_it_an_artifact_is_durable_and_nothing_is_owed(
    group: list[Seat], what: bytes, k: int
) -> None:
    """Else a debt could wait for ever for what nobody is asked for."""
    around = pool(what, group, k)
    chosen = targets(around.seats, k, around.domains)
    receipts = {s.store: s for s in chosen}
    assert durable(receipts, around, group) is around.enough
    assert targets(around.seats, k, around.domains, chosen) == []


def test_a_copy_is_added_when_all_lie_in_one_domain() -> None:
    """Two copies were made while only one domain was there; another has come."""
    here, there = [seat(1, "x"), seat(2, "x")], seat(3, "y")
    around = pool(digest(1), [*here, there], 2)
    assert targets(around.seats, 2, around.domains, here) == [there]


# --- little moves ---

MANY = [seat(number, "xyz"[number % 3]) for number in range(12)]
SAMPLES = [digest(number) for number in range(300)]


def holders(group: Sequence[Seat], what: bytes, k: int = 2) -> set[bytes]:
    around = pool(what, group, k)
    return {s.store for s in targets(around.seats, k, around.domains)}


def test_ranks_of_the_others_stay_when_a_store_joins_or_leaves() -> None:
    for what in SAMPLES[:50]:
        all_of_them = pool(what, MANY, 2).seats
        without = pool(what, MANY[1:], 2).seats
        assert [s for s in all_of_them if s != MANY[0]] == list(without)


def test_when_a_store_leaves_only_what_it_had_moves() -> None:
    for what in SAMPLES:
        before, after = holders(MANY, what), holders(MANY[1:], what)
        assert before - {MANY[0].store} <= after
        assert MANY[0].store in before or after == before


def test_a_store_that_joins_takes_about_its_share() -> None:
    taken = sum(1 for what in SAMPLES if holders(MANY[1:], what) != holders(MANY, what))
    assert 20 <= taken <= 90  # 300 artifacts of 2 copies over 12 stores: 50 are expected, with a deviation of 6


def test_the_load_is_spread_over_all_stores() -> None:
    held = dict.fromkeys((s.store for s in MANY), 0)
    for what in SAMPLES:
        for chosen in holders(MANY, what):
            held[chosen] += 1
    assert min(held.values()) >= 20
    assert max(held.values()) <= 90


# --- durable ---


def receipts(*held: Seat) -> dict[bytes, Seat]:
    return {s.store: s for s in held}


A, B, C = seat(1, "x"), seat(2, "x"), seat(3, "y")
E1, E2 = seat(8, "z", ephemeral=True), seat(9, "z", ephemeral=True)


def is_durable(held: dict[bytes, Seat], around: Sequence[Seat], k: int = 2, domains: int = 0) -> bool:
    return durable(held, pool(digest(1), around, k, domains), around, domains)


def test_k_receipts_over_the_domains_there_are_make_an_artifact_durable() -> None:
    assert not is_durable({}, [A, B])
    assert not is_durable(receipts(A), [A, B])
    assert is_durable(receipts(A, B), [A, B])


def test_two_copies_in_one_domain_do_not_do_when_there_is_another() -> None:
    assert not is_durable(receipts(A, B), [A, B, C])
    assert is_durable(receipts(A, C), [A, B, C])
    assert is_durable(receipts(A, B, C), [A, B, C])


def test_two_receipts_from_one_store_are_one_copy() -> None:
    """An NFS group: two nodes state the same store."""
    mate = replace(A, node="mate")
    assert not is_durable(receipts(A, mate), [A, B])


def test_too_few_eligible_stores_leave_it_at_risk() -> None:
    assert not is_durable(receipts(A), [A])
    assert not is_durable({}, [])


def test_an_ephemeral_receipt_counts_only_while_persistent_stores_are_too_few() -> None:
    assert is_durable(receipts(A, E1), [A, E1])
    assert not is_durable(receipts(A, E1), [A, B, E1])
    assert not is_durable(receipts(E1, E2), [A, C, E1, E2])
    assert is_durable(receipts(E1, E2), [E1, E2])


def test_a_holder_that_is_full_by_now_is_still_a_persistent_store() -> None:
    """It holds, though it is no longer eligible: so an ephemeral copy does not stand in for the second one."""
    assert not is_durable(receipts(A, E1), [B, E1])


def test_receipts_of_stores_that_are_gone_from_the_pool_still_count() -> None:
    assert is_durable(receipts(A, B), [])


def test_asked_for_domains_must_be_there() -> None:
    assert not is_durable(receipts(A, B), [A, B], domains=2)
    assert is_durable(receipts(A, C), [A, B, C], domains=2)
    assert is_durable(receipts(A, B), [A, B, C], domains=1)


def test_more_domains_than_copies_need_as_many_copies_as_domains() -> None:
    """`--wait 2 --domains 3` is not answered by two copies."""
    D = seat(4, "z")
    assert not is_durable(receipts(A, C), [A, C, D], k=2, domains=3)
    assert is_durable(receipts(A, C, D), [A, C, D], k=2, domains=3)


@UNHURRIED
@given(seats, seats, copies)
def test_one_more_receipt_never_makes_less_durable_among_persistent_stores(
    group: list[Seat], held: list[Seat], k: int
) -> None:
    group, held = ([replace(s, ephemeral=False) for s in some] for some in (group, held))
    around = pool(digest(1), group, k)
    for count in range(len(held)):
        if durable(receipts(*held[:count]), around, group):
            assert durable(receipts(*held[: count + 1]), around, group)


def test_a_pool_says_itself_whether_it_is_enough() -> None:
    assert Pool((A, B), 2, 1).enough
    assert not Pool((A,), 2, 1).enough
