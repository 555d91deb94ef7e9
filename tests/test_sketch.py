"""Sketches: two sets' cells give exactly their difference, never anything else, and cost little."""

from array import array
from contextlib import suppress
from itertools import pairwise
from random import Random
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import differences
from protocol.cells import (
    CELLS_MAX,
    PREFIX_CELLS,
    TAG_MASK,
    Cells,
    CellsRefused,
    continued,
    pack,
    parse,
    places_of,
    seed_of,
    sketch_key,
    tag_of,
)
from protocol.differences import DIFFERENCES_MAX, Decoded, cells_for, decode, estimate
from protocol.fingerprints import cluster_key
from protocol.sketch import BATCH_ITEMS_MIN, Sketch, SketchDamaged
from protocol.sketch_batches import CHUNK_ITEMS

KEY = cluster_key("fleet")
CELLS = 512  # what most tests keep: enough for a hundred differences
ITEMS = st.integers(0, (1 << 64) - 1)
SETS = st.sets(ITEMS, max_size=60)


def sketch_of(items: set[int] | list[int], cells: int = CELLS, key: bytes = KEY) -> Sketch:
    sketch = Sketch(key, cells)
    for item in sorted(items):
        sketch.add(item)
    return sketch


def drawn(count: int, seed: int) -> list[int]:
    numbers = array("Q", Random(seed).randbytes(8 * count))
    return numbers.tolist()


def two_sets(common: int, ours: int, theirs: int, seed: int = 1, cells: int = CELLS_MAX) -> tuple[Sketch, Sketch]:
    """A sketch of ours and one of theirs, made of random items."""
    items = drawn(common + ours + theirs, seed)
    own, other = Sketch(KEY, cells), Sketch(KEY, cells)
    own.apply(items[: common + ours])
    other.apply(items[:common] + items[common + ours :])
    return own, other


# --- what nodes of all releases and platforms must agree on ---


def test_checks_and_places_are_what_they_always_were() -> None:
    """Nodes of two releases subtract each other's cells: other values need another version of wire and file."""
    key = sketch_key(KEY)
    assert key == 0xBF88647D862DB920
    assert seed_of(0, key) == 0x024474E071723C51
    assert seed_of(1, key) == 0x0CA7DFC941BDFBEA
    assert seed_of(0x2DB71D4DE8F93801, key) == 0x572BAE53D456619E
    assert seed_of((1 << 64) - 1, key) == 0xD820C71EC83145EB
    assert tag_of(0xFEDCBA9876543210) == 0xFEDCBA987001
    assert places_of(1, CELLS_MAX) == [
        0, 1, 2, 6, 11, 13, 20, 33, 42, 46, 61, 67, 84, 200, 316, 355, 867, 1102, 1136, 1491, 1819, 2830, 3224, 14712
    ]  # fmt: skip
    assert places_of(0xFEDCBA9876543210, CELLS_MAX) == [
        0, 1, 2, 3, 5, 9, 10, 12, 15, 20, 72, 241, 428, 2351, 2893, 2940, 4633, 6734, 7289, 10215
    ]  # fmt: skip
    assert places_of((1 << 64) - 1, CELLS_MAX) == [
        0, 5, 19, 36, 51, 67, 82, 105, 438, 608, 948, 1033, 1325, 2299, 6302, 7056, 11970
    ]  # fmt: skip


def test_a_sketch_is_what_it_always_was_on_the_wire_and_on_disk() -> None:
    sketch = sketch_of(drawn(1000, 7))
    assert sketch.fold() == (1000, 0x3558E5E3AD244EFE)
    assert sketch.prefix(2).hex() == (
        "01" "0000" "0200" "e803000000000000" "fe4e24ade3e55835"
        "fe4e24ade3e55835" "b77559c0371ddc58" "e8335006279f" "a39289214618"
    )  # fmt: skip
    assert crc32(sketch.prefix(CELLS)) == 0x1E357FC0
    assert crc32(sketch.to_bytes()) == 0x53D74D0B


def test_cell_i_holds_two_in_i_plus_two_of_all_items() -> None:
    walks = [places_of(seed_of(item, 7), 64) for item in drawn(20_000, 4)]
    for cell in (0, 1, 2, 5, 20, 63):
        share = sum(cell in walk for walk in walks) / len(walks)
        assert share == pytest.approx(2 / (cell + 2), rel=0.12)


@settings(deadline=None)
@given(st.integers(0, (1 << 64) - 1), st.integers(1, CELLS_MAX))
def test_places_ascend_from_zero_and_do_not_depend_on_how_many_cells_there_are(seed: int, cells: int) -> None:
    places = places_of(seed, cells)
    assert places[0] == 0
    assert all(before < after < cells for before, after in pairwise(places))
    assert places == [place for place in places_of(seed, CELLS_MAX) if place < cells]


# --- keeping a sketch ---


@settings(deadline=None)
@given(SETS, st.randoms(use_true_random=False))
def test_the_order_of_updates_does_not_matter(items: set[int], random: Random) -> None:
    shuffled = sorted(items)
    random.shuffle(shuffled)
    other = Sketch(KEY, CELLS)
    for item in shuffled:
        other.add(item)
    assert other == sketch_of(items)


@settings(deadline=None)
@given(SETS, SETS)
def test_what_is_put_in_and_taken_out_leaves_no_trace(items: set[int], passing: set[int]) -> None:
    sketch = sketch_of(items)
    before = sketch.copy()
    for item in sorted(passing - items):
        sketch.add(item)
    for item in sorted(passing - items, reverse=True):
        sketch.remove(item)
    assert sketch == before


@pytest.mark.parametrize("count", [0, 1, 3, BATCH_ITEMS_MIN - 1, BATCH_ITEMS_MIN, 2_000])
def test_a_batch_is_the_same_as_one_after_the_other(count: int) -> None:
    items = [*drawn(count, count), 0, (1 << 64) - 1]
    singly, at_once = Sketch(KEY), Sketch(KEY)
    for item in items:
        singly.add(item)
    at_once.apply(items)
    assert at_once == singly
    removed, kept = items[: count // 2], items[count // 2 :]
    fresh = drawn(count, count + 1)
    at_once.apply(fresh, removed)
    for item in removed:
        singly.remove(item)
    for item in fresh:
        singly.add(item)
    assert at_once == singly
    assert at_once.fold()[0] == len(kept) + len(fresh)


def test_a_batch_of_several_chunks_is_the_same_as_its_parts() -> None:
    items = drawn(2 * CHUNK_ITEMS + 600, 1)
    at_once, in_parts = Sketch(KEY), Sketch(KEY)
    at_once.apply(items)
    for start in range(0, len(items), 7_000):
        in_parts.apply(items[start : start + 7_000])
    assert at_once == in_parts


def test_a_batch_may_be_an_array() -> None:
    items = drawn(2_000, 5)
    listed, packed = Sketch(KEY, CELLS), Sketch(KEY, CELLS)
    listed.apply(items)
    packed.apply(array("Q", items))
    assert packed == listed


@settings(deadline=None)
@given(SETS)
def test_the_fold_is_count_and_exclusive_or_of_all(items: set[int]) -> None:
    combined = 0
    for item in sorted(items):
        combined ^= item
    assert sketch_of(items, 1).fold() == (len(items), combined)


def test_a_smaller_sketch_is_the_beginning_of_a_larger_one() -> None:
    items = drawn(300, 2)
    assert sketch_of(items, 64).prefix(64) == sketch_of(items, CELLS_MAX).prefix(64)


def test_a_copy_goes_its_own_way() -> None:
    sketch = sketch_of({1, 2})
    twin = sketch.copy()
    twin.add(3)
    assert sketch == sketch_of({1, 2})
    assert twin == sketch_of({1, 2, 3})


@pytest.mark.parametrize("item", [-1, 1 << 64])
def test_an_item_of_more_than_64_bits_changes_nothing(item: int) -> None:
    sketch = sketch_of({1, 2})
    with pytest.raises(OverflowError):
        sketch.add(item)
    assert sketch == sketch_of({1, 2})


# --- differences ---


@settings(deadline=None)
@given(SETS, SETS, SETS)
def test_any_two_sets_give_exactly_their_difference(common: set[int], ours: set[int], theirs: set[int]) -> None:
    own, other = common | ours, common | theirs
    decoded = decode(sketch_of(own), parse(sketch_of(other).prefix(CELLS)))
    assert decoded == Decoded(tuple(sorted(own - other)), tuple(sorted(other - own)), True)


@settings(deadline=None)
@given(SETS, SETS, st.integers(1, 80))
def test_too_few_cells_tell_less_but_nothing_untrue(own: set[int], other: set[int], cells: int) -> None:
    decoded = decode(sketch_of(own), sketch_of(other).cells(0, cells))
    assert {*decoded.only_ours} <= own - other
    assert {*decoded.only_theirs} <= other - own
    if decoded.complete:
        assert len(decoded.only_ours) + len(decoded.only_theirs) == len(own ^ other)


def test_equal_sets_agree_on_the_smallest_prefix() -> None:
    own, other = two_sets(5_000, 0, 0)
    assert decode(own, other.cells(0, 1)) == Decoded((), (), True)
    assert estimate(own, other.cells(0, PREFIX_CELLS)) == 0


@pytest.mark.parametrize(("ours", "theirs"), [(500, 500), (1_000, 0), (0, 1_000), (7_000, 3_000)])
def test_large_differences_peeled_in_rounds_come_out_whole(ours: int, theirs: int) -> None:
    items = drawn(20_000 + ours + theirs, 9)
    own, other = two_sets(20_000, ours, theirs, seed=9)
    decoded = decode(own, other.cells(0, CELLS_MAX))
    assert decoded.complete
    assert decoded.only_ours == tuple(sorted(items[20_000 : 20_000 + ours]))
    assert decoded.only_theirs == tuple(sorted(items[20_000 + ours :]))


@pytest.mark.parametrize("cells", [900, 1_300, 1_500])
def test_peeling_in_rounds_and_one_by_one_find_the_same(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    """With too few cells, with just about enough, and with enough."""
    own, other = two_sets(2_000, 600, 400, seed=4)
    one_by_one = decode(own, other.cells(0, cells))
    monkeypatch.setattr(differences, "BATCH_CELLS_MIN", 1)
    assert decode(own, other.cells(0, cells)) == one_by_one


def test_a_sketch_with_fewer_cells_decodes_with_those_it_has() -> None:
    own, other = two_sets(100, 5, 5)
    small = Sketch(KEY, 64)
    small.apply(drawn(110, 1)[:105])
    assert decode(small, other.cells(0, CELLS_MAX)) == decode(own, other.cells(0, 64))


def test_sketches_of_two_clusters_have_nothing_in_common() -> None:
    items = drawn(100, 1)
    stranger = sketch_of(items, key=cluster_key("fleet2"))
    assert not decode(sketch_of(items), stranger.cells(0, CELLS)).complete


# --- the second round ---


def test_the_second_round_continues_the_first() -> None:
    own, other = two_sets(3_000, 150, 150)
    first = parse(other.prefix(PREFIX_CELLS))
    assert not decode(own, first).complete
    wanted = cells_for(estimate(own, first), first.end)
    second = parse(pack(other.cells(first.end, wanted)))
    decoded = decode(own, continued(first, second))
    assert decoded.complete
    assert (len(decoded.only_ours), len(decoded.only_theirs)) == (150, 150)


def test_cells_of_a_set_that_changed_meanwhile_do_not_continue_those_before() -> None:
    other = sketch_of(drawn(100, 1))
    first = other.cells(0, 64)
    other.add(7)
    with pytest.raises(CellsRefused, match="ask from 0 on"):
        continued(first, other.cells(64, 128))


@pytest.mark.parametrize("start", [0, 63, 65])
def test_cells_with_a_gap_or_an_overlap_do_not_continue(start: int) -> None:
    other = sketch_of(drawn(100, 1))
    with pytest.raises(CellsRefused):
        continued(other.cells(0, 64), other.cells(start, 128))


def test_no_difference_is_read_from_the_middle() -> None:
    with pytest.raises(CellsRefused):
        decode(sketch_of({1}), sketch_of({1}).cells(64, 128))
    with pytest.raises(CellsRefused):
        estimate(sketch_of({1}), sketch_of({1}).cells(64, 128))


# --- what it costs ---


def test_a_thousand_differences_are_found_in_two_rounds_and_40_kilobytes() -> None:
    own, other = two_sets(50_000, 450, 550, seed=3)
    first = other.prefix(PREFIX_CELLS)
    wanted = cells_for(estimate(own, parse(first)))
    second = pack(other.cells(PREFIX_CELLS, wanted))
    decoded = decode(own, continued(parse(first), parse(second)))
    assert (len(decoded.only_ours), len(decoded.only_theirs), decoded.complete) == (450, 550, True)
    assert len(first) + len(second) <= 40_000


def test_equal_sets_cost_less_than_a_kilobyte() -> None:
    assert len(sketch_of(drawn(1_000, 1)).prefix(PREFIX_CELLS)) == 917


# --- estimates ---


@pytest.mark.parametrize(("ours", "theirs"), [(50, 50), (100, 0), (0, 1_000), (500, 500), (4_000, 6_000), (50_000, 9)])
def test_an_estimate_from_64_cells_is_within_a_factor_of_two(ours: int, theirs: int) -> None:
    for seed in range(5):
        own, other = two_sets(1_000, ours, theirs, seed, cells=64)
        assert 0.5 <= estimate(own, other.cells(0, 64)) / (ours + theirs) <= 2


def test_an_estimate_from_a_thousand_cells_is_within_a_fifth() -> None:
    for seed in range(5):
        own, other = two_sets(1_000, 900, 1_100, seed)
        assert estimate(own, other.cells(0, 1_000)) == pytest.approx(2_000, rel=0.2)


def test_an_estimate_is_never_below_the_difference_in_size() -> None:
    for seed in range(5):
        own, other = two_sets(10, 200, 0, seed)
        assert estimate(own, other.cells(0, 64)) >= 200


def test_a_difference_too_large_for_cells_is_seen_from_the_prefix() -> None:
    for seed in range(3):
        own, other = two_sets(0, 50_000, 50_000, seed, cells=64)
        assert estimate(own, other.cells(0, 64)) > DIFFERENCES_MAX


@settings(deadline=None)
@given(st.integers(0, 1 << 70), st.integers(1, CELLS_MAX))
def test_cells_asked_for_are_more_than_before_and_never_more_than_there_are(estimated: int, seen: int) -> None:
    wanted = cells_for(estimated, seen)
    assert wanted <= CELLS_MAX
    assert wanted >= min(CELLS_MAX, seen + seen // 4)
    assert wanted <= cells_for(estimated + 1, seen)


# --- what a peer may send ---


@settings(deadline=None)
@given(st.binary(max_size=2_000))
def test_bytes_that_are_no_cells_are_refused_and_nothing_else_happens(frame: bytes) -> None:
    with suppress(CellsRefused):
        assert pack(parse(frame)) == frame


def test_cells_come_back_from_the_wire_as_they_were() -> None:
    sketch = sketch_of(drawn(500, 1))
    for first, end in ((0, 1), (0, CELLS), (64, 65), (64, CELLS)):
        assert parse(pack(sketch.cells(first, end))) == sketch.cells(first, end)


def refused(frame: bytes, sentence: str) -> None:
    with pytest.raises(CellsRefused, match=sentence):
        parse(frame)


def test_every_field_of_the_header_is_checked() -> None:
    frame = sketch_of(drawn(500, 1)).prefix(64)
    refused(b"", "too few")
    refused(frame[:20], "too few")
    refused(frame[:-1], "cannot be 64 cells")
    refused(frame + b"\0", "cannot be 64 cells")
    refused(b"\2" + frame[1:], "upgrade the older node")
    refused(frame[:3] + bytes(2) + frame[5:21], "cannot be 0 cells")
    refused(frame[:1] + b"\xf0\xff" + frame[3:], "cannot be 64 cells from 65520")
    refused(frame[:12] + b"\x80" + frame[13:], "rows")
    refused(frame[:5] + b"\0\0" + frame[7:], "contradicts")
    refused(frame[:13] + bytes(8) + frame[21:], "contradicts")


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300), st.integers(0), st.integers(0, 4_000))
def test_random_cells_never_look_complete_and_never_hang(count: int, seed: int, rows: int) -> None:
    random = Random(seed)
    items = tuple(random.getrandbits(64) for _ in range(count))
    tags = ((rows % 4096), *(random.getrandbits(48) for _ in range(count - 1)))
    decoded = decode(sketch_of({1, 2, 3}), parse(pack(Cells(0, (rows, items[0]), items, tags))))
    assert not decoded.complete


@settings(deadline=None, max_examples=30)
@given(st.sets(ITEMS, max_size=20), st.integers(0), st.integers(1, 20), st.sampled_from(["items", "tags", "both"]))
def test_true_cells_with_a_few_changed_are_never_complete(items: set[int], seed: int, changes: int, what: str) -> None:
    random = Random(seed)
    cells = sketch_of(items).cells(0, 200)
    bent_items, bent_tags = list(cells.items), list(cells.tags)
    for cell in random.sample(range(1, 200), changes):
        bent_items[cell] ^= 0 if what == "tags" else random.getrandbits(64) | 1
        bent_tags[cell] ^= 0 if what == "items" else random.getrandbits(48) | 1
    decoded = decode(sketch_of({1, 2, 3}), Cells(0, cells.fold, tuple(bent_items), tuple(bent_tags)))
    assert not decoded.complete


@pytest.mark.parametrize("batches_from", [1, 10_000_000], ids=["in rounds", "one by one"])
def test_cells_made_to_show_items_for_ever_end(monkeypatch: pytest.MonkeyPatch, batches_from: int) -> None:
    """Every item stands in its last cell alone: taken out there, it shows as missing in all its others, and again."""
    monkeypatch.setattr(differences, "BATCH_CELLS_MIN", batches_from)
    own = Sketch(KEY)
    items, tags = [0] * CELLS_MAX, [0] * CELLS_MAX
    for item in drawn(5_000, 1):
        seed = seed_of(item, own.key)
        last = places_of(seed, CELLS_MAX)[-1]
        items[last], tags[last] = item, tag_of(seed)
    decoded = decode(own, Cells(0, (0, items[0]), tuple(items), tuple(tags)))
    assert not decoded.complete


def test_an_item_shown_as_ours_and_as_theirs_is_neither() -> None:
    own = Sketch(KEY, 64)
    seed = seed_of(77, own.key)
    places = places_of(seed, 64)
    items, tags = [0] * 64, [0] * 64
    items[places[-1]], tags[places[-1]] = 77, tag_of(seed)
    decoded = decode(own, Cells(0, (0, items[0]), tuple(items), tuple(tags)))
    assert not decoded.complete
    assert len(decoded.only_ours) + len(decoded.only_theirs) <= 1


@pytest.mark.parametrize("batches_from", [1, 10_000_000], ids=["in rounds", "one by one"])
def test_items_in_cells_that_are_not_their_own_do_not_show(monkeypatch: pytest.MonkeyPatch, batches_from: int) -> None:
    """All other cells hold so much that nothing else can show, nor correct what was shown."""
    monkeypatch.setattr(differences, "BATCH_CELLS_MIN", batches_from)
    own = Sketch(KEY)
    items, tags = drawn(CELLS_MAX, 1), [5] * CELLS_MAX
    for number, item in enumerate(drawn(100, 2)):
        seed = seed_of(item, own.key)
        cell = next(cell for cell in range(100 * number + 1, CELLS_MAX) if cell not in places_of(seed, CELLS_MAX))
        items[cell], tags[cell] = item, tag_of(seed)
    assert decode(own, Cells(0, (5, items[0]), tuple(items), tuple(tags))) == Decoded((), (), False)


def test_a_count_that_contradicts_the_items_is_not_complete() -> None:
    cells = sketch_of({1, 2}).cells(0, 64)
    assert decode(sketch_of({1}), cells).complete
    assert not decode(sketch_of({1}), Cells(0, (2 + 4096, cells.fold[1]), cells.items, cells.tags)).complete


# --- saved ---


@settings(deadline=None)
@given(SETS)
def test_what_is_saved_is_what_was_kept(items: set[int]) -> None:
    sketch = sketch_of(items)
    again = Sketch.from_bytes(KEY, sketch.to_bytes(), CELLS)
    assert again == sketch
    again.add(1)
    sketch.add(1)
    assert again == sketch


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_a_saved_sketch_that_was_changed_or_cut_is_damaged(data: st.DataObject) -> None:
    saved = bytearray(sketch_of(drawn(100, 1), 16).to_bytes())
    at = data.draw(st.integers(0, len(saved) - 1))
    if data.draw(st.booleans()):
        saved[at] ^= data.draw(st.integers(1, 255))
    else:
        del saved[at:]
    with pytest.raises(SketchDamaged, match="made anew"):
        Sketch.from_bytes(KEY, bytes(saved), 16)


def test_a_sketch_of_another_cluster_size_or_release_is_made_anew() -> None:
    saved = sketch_of({1, 2}).to_bytes()
    with pytest.raises(SketchDamaged, match="another cluster"):
        Sketch.from_bytes(cluster_key("fleet2"), saved, CELLS)
    with pytest.raises(SketchDamaged, match="another cluster or size"):
        Sketch.from_bytes(KEY, saved)
    with pytest.raises(SketchDamaged, match="another release"):
        Sketch.from_bytes(KEY, b"SPS2" + saved[4:], CELLS)


def test_tags_of_sums_stay_within_their_48_bits() -> None:
    own, _ = two_sets(3_000, 0, 0)
    own.apply([], drawn(3_000, 1)[:1_000])
    cells = own.cells(0, CELLS_MAX)
    assert max(cells.tags) <= TAG_MASK
    assert cells.tags[0] % 4096 == 2_000
