"""One contract for both catalogues: the agent's manifest over SQLite and the simulator's over dictionaries.

Every test speaks to an `Actor`, which turns both into the same few calls. The last tests feed random batches to both
and demand the same answer to every question, and that the sketch is what a recount of all rows gives.
"""

import asyncio
import inspect
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.catalogue import HOLDERS_MAX, SHARERS_MAX, VERSIONS_MAX, Catalogue
from protocol.cells import Cells
from protocol.fingerprints import (
    PREFIXES,
    cluster_key,
    holding_fingerprint,
    member_fingerprint,
    record_fingerprint,
)
from protocol.messages import Prints
from protocol.recent import Recent
from protocol.sketch import Sketch
from protocol.values import (
    NO_DIGEST,
    Batch,
    Digest,
    Holding,
    HoldingKey,
    Member,
    Place,
    Presence,
    Record,
    RecordKey,
    Rows,
    State,
)
from simulations.memory import CELLS, MemoryCatalogue
from storage.manifest import START, Manifest, Page

CLUSTER = "contract"
NODE = "alpha"
D1, D2, D3 = (bytes([number]) * 32 for number in (1, 2, 3))
S1, S2, S3 = (bytes([number]) * 16 for number in (1, 2, 3))


class Actor:
    """A catalogue to ask, and the way to change it."""

    def __init__(self, catalogue: Manifest | MemoryCatalogue) -> None:
        self.catalogue: Catalogue = catalogue
        self._both = catalogue

    async def apply(self, *batches: Batch) -> None:
        outcome = self._both.apply(batches)
        if inspect.isawaitable(outcome):
            assert (await outcome).refused == ()

    async def scan(self, after: tuple[str, int, str], limit: int) -> tuple[Page, bool]:
        outcome = self._both.scan(after, limit)
        return await outcome if isinstance(outcome, Coroutine) else outcome

    async def pages(self, page_rows: int) -> list[Rows]:
        pages = self._both.rows_pages(page_rows)
        if isinstance(pages, AsyncIterator):
            return [page async for page in pages]
        return list(pages)

    async def rows_of(self, fingerprints: list[int]) -> list[object]:
        if isinstance(self._both, MemoryCatalogue):
            found = [self._both.rows_of(fingerprints)]
        else:
            found = [rows async for rows in self._both.differences.rows_of(fingerprints)]
        return [row for rows in found for row in (*rows.records, *rows.holdings, *rows.members)]

    async def prints_pages(self) -> list[Prints]:
        if isinstance(self._both, MemoryCatalogue):
            return list(self._both.prints_pages(10))
        return [page async for page in self._both.differences.prints_pages()]

    async def compare(self, page: Prints) -> tuple[Rows, tuple[int, ...]]:
        if isinstance(self._both, MemoryCatalogue):
            return self._both.compare(page)
        return await self._both.differences.compare(page)

    def last_hlc(self) -> int:
        return self._both.last_hlc()


@asynccontextmanager
async def over_sqlite() -> AsyncIterator[Actor]:
    with tempfile.TemporaryDirectory() as folder:
        manifest = await Manifest.open(Path(folder) / "manifest.db", cluster=CLUSTER, node=NODE)
        try:
            yield Actor(manifest)
        finally:
            await manifest.close()


@asynccontextmanager
async def in_memory() -> AsyncIterator[Actor]:
    yield Actor(MemoryCatalogue(CLUSTER, NODE))


class Remembering(Actor):
    """A catalogue behind the core's memory of it, which hears of every batch after it is durable."""

    def __init__(self, catalogue: MemoryCatalogue) -> None:
        super().__init__(catalogue)
        self.catalogue = self._recent = Recent(catalogue)

    async def apply(self, *batches: Batch) -> None:
        answers(self._recent)
        for batch in batches:
            self._recent.begin(batch)
        await super().apply(*batches)
        for batch in batches:
            self._recent.committed(batch)


@asynccontextmanager
async def remembered() -> AsyncIterator[Actor]:
    yield Remembering(MemoryCatalogue(CLUSTER, NODE))


Story = Callable[[Actor], Awaitable[None]]
Tell = Callable[[Story], None]


@pytest.fixture(params=[over_sqlite, in_memory, remembered], ids=["sqlite", "memory", "remembered"])
def tell(request: pytest.FixtureRequest) -> Tell:
    """Runs a story with a fresh catalogue of either kind."""

    async def run(story: Story) -> None:
        async with request.param() as actor:
            await story(actor)

    return lambda story: asyncio.run(run(story))


def record(name: str = "model/a.pth", hlc: int = 100, origin: str = "alpha", **changes: Any) -> Record:
    return replace(Record(name, hlc, origin, D1, D2, 10), **changes)


def holding(digest: Digest = D1, node: str = "alpha", store: bytes = S1, seq: int = 1, present: bool = True) -> Holding:
    return Holding(node, store, digest, seq, present)


def place(path: str, digest: Digest = D1, **changes: Any) -> Place:
    return replace(Place(path, digest, 1, 2, 10, 1_700_000_000_000_000_000), **changes)


def put(*rows: Record | Holding | Member | Place) -> Batch:
    return Batch(
        Rows(
            tuple(row for row in rows if isinstance(row, Record)),
            tuple(row for row in rows if isinstance(row, Holding)),
            tuple(row for row in rows if isinstance(row, Member)),
        ),
        tuple(row for row in rows if isinstance(row, Place)),
    )


def test_an_empty_catalogue_answers_every_question_with_nothing(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        catalogue = actor.catalogue
        assert catalogue.record(RecordKey("model/a", 1, "alpha")) is None
        assert catalogue.holding(HoldingKey(D1, "alpha", S1)) is None
        assert catalogue.member("alpha") is None
        assert catalogue.place("a") is None
        assert catalogue.versions("model/a") == catalogue.sharers(D1) == catalogue.holdings(D1) == ()
        assert catalogue.members() == catalogue.places(D1) == ()
        assert catalogue.sketch().fold() == (0, 0)
        assert await actor.scan(START, 10) == ((), True)
        assert await actor.pages(10) == []
        assert actor.last_hlc() == 0

    tell(story)


def test_every_field_comes_back_as_it_was_put(tell: Tell) -> None:
    full = Record(
        "game/beta/tic tac — ü/1.db",
        (1 << 63) - 1,
        "beta",
        D1,
        D2,
        1 << 50,
        0o600,
        State.EXPIRED,
        "peers",
        (("note", "später"), ("count", -3), ("large", 1 << 62)),
    )
    withdrawn = Holding("beta", S2, D1, 1 << 62, False)
    member = Member(
        "beta",
        7,
        "10.0.0.5:7946",
        "training",
        "nebius",
        "eu",
        S2,
        True,
        True,
        True,
        Presence.LEFT,
        1 << 45,
        1 << 44,
        3,
        9,
        "ab",
    )
    everywhere = Place("peers/beta/ü.db", D1, (1 << 64) - 1, (1 << 64) - 2, 1 << 50, -5, True)

    async def story(actor: Actor) -> None:
        await actor.apply(put(full, withdrawn, member, everywhere))
        assert actor.catalogue.record(full.key) == full
        assert actor.catalogue.versions(full.name) == (full,)
        assert actor.catalogue.holding(withdrawn.key) == withdrawn
        assert actor.catalogue.member("beta") == member
        assert actor.catalogue.members() == (member,)
        assert actor.catalogue.place(everywhere.path) == everywhere
        assert actor.catalogue.places(D1) == (everywhere,)
        assert await actor.pages(10) == [Rows((full,)), Rows((), (withdrawn,)), Rows((), (), (member,))]

    tell(story)


def test_a_record_keeps_its_first_value_and_only_its_state_rises(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        first, other = record(), record(digest=D3, size=99)
        deleted = record(state=State.DELETED, digest=NO_DIGEST, size=0)
        await actor.apply(put(first), put(other))
        assert actor.catalogue.record(first.key) == first
        await actor.apply(put(deleted))
        assert actor.catalogue.record(first.key) == deleted
        assert actor.catalogue.sharers(D1) == ()
        await actor.apply(put(first))
        assert actor.catalogue.record(first.key) == deleted

    tell(story)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_states_end_alike_in_whatever_order_they_arrive(tell: Tell, order: tuple[int, ...]) -> None:
    async def story(actor: Actor) -> None:
        for number in order:
            await actor.apply(put(record(state=State(number))))
        assert actor.catalogue.record(record().key) == record(state=State.EXPIRED)

    tell(story)


def test_versions_come_newest_first_with_tombstones_and_bounded(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        many = [record(hlc=number, origin=origin) for number in range(200) for origin in ("alpha", "beta")]
        tomb = record(hlc=1000, state=State.DELETED)
        await actor.apply(put(*many, tomb, record("model/a.pth2", 5000), record("model/a.pt", 5000)))
        newest = sorted(many, key=lambda version: version.order, reverse=True)
        assert actor.catalogue.versions("model/a.pth") == (tomb, *newest[: VERSIONS_MAX - 1])

    tell(story)


def test_sharers_are_live_in_key_order_and_bounded(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        many = [record(f"model/{number:04d}", 5) for number in range(SHARERS_MAX + 10)]
        await actor.apply(put(*reversed(many), record("model/", 1, state=State.DELETED), record("model/z", digest=D2)))
        assert actor.catalogue.sharers(D1) == tuple(many[:SHARERS_MAX])

    tell(story)


def test_a_holding_is_replaced_only_by_a_later_word_of_its_node(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        said, withdrawn = holding(seq=5), holding(seq=6, present=False)
        await actor.apply(put(said), put(holding(seq=4, present=False)), put(holding(seq=5, present=False)))
        assert actor.catalogue.holdings(D1) == (said,)
        await actor.apply(put(withdrawn), put(said))
        assert actor.catalogue.holdings(D1) == ()
        assert actor.catalogue.holding(said.key) == withdrawn

    tell(story)


def test_holdings_are_ordered_by_node_and_store_and_only_the_present_ones_are_told(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        told = [holding(node=node, store=store) for node in ("alpha", "beta", "beta-2") for store in (S1, S2)]
        others = [holding(D2), holding(node="gamma", present=False)]
        await actor.apply(put(*reversed(told), *others))
        assert actor.catalogue.holdings(D1) == tuple(told)

    tell(story)


def test_holdings_of_one_digest_are_bounded(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        many = [holding(node=f"n{number:05d}") for number in range(HOLDERS_MAX + 3)]
        await actor.apply(put(*many))
        assert actor.catalogue.holdings(D1) == tuple(many[:HOLDERS_MAX])

    tell(story)


def test_a_member_is_replaced_only_by_a_later_word_of_its_own(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        now, earlier = Member("beta", 5, role="training"), Member("beta", 4, role="selfplay")
        other = Member("alpha", 1)
        await actor.apply(put(now, other), put(earlier), put(replace(now, role="other")))
        assert actor.catalogue.members() == (other, now)

    tell(story)


def test_a_place_is_replaced_by_path_and_leaves_its_old_digest(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        await actor.apply(put(place("b"), place("a"), place("c", D2)))
        assert actor.catalogue.places(D1) == (place("a"), place("b"))
        await actor.apply(put(place("a", D2, size=11)))
        assert actor.catalogue.places(D1) == (place("b"),)
        assert actor.catalogue.places(D2) == (place("a", D2, size=11), place("c", D2))

    tell(story)


def test_within_a_batch_what_is_dropped_is_dropped_first(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        await actor.apply(put(record(), place("a")))
        again = record(digest=D3)
        await actor.apply(
            replace(put(again, place("a", D3)), forget_records=(record().key,), forget_places=("a", "never there"))
        )
        assert actor.catalogue.record(again.key) == again
        assert actor.catalogue.place("a") == place("a", D3)

    tell(story)


def test_batches_of_one_group_count_in_order(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        drop = Batch(forget_records=(record().key,), forget_places=("a",))
        await actor.apply(put(record(), place("a")), drop)
        assert actor.catalogue.record(record().key) is None
        assert actor.catalogue.place("a") is None
        await actor.apply(put(record(), place("a")), drop, put(record(digest=D2), place("a", D2)), put(record()))
        assert actor.catalogue.record(record().key) == record(digest=D2)
        assert actor.catalogue.place("a") == place("a", D2)
        assert cells_of(actor) == recount(record(digest=D2))

    tell(story)


def prints_of(*rows: Record | Holding | Member) -> list[int]:
    """The fingerprints of what counts: not of withdrawn holdings."""
    key = cluster_key(CLUSTER)
    prints = [record_fingerprint(key, row) for row in rows if isinstance(row, Record)]
    prints += [holding_fingerprint(key, row) for row in rows if isinstance(row, Holding) and row.present]
    return prints + [member_fingerprint(key, row) for row in rows if isinstance(row, Member)]


def recount(*rows: Record | Holding | Member) -> Cells:
    """The sketch by its definition."""
    sketch = Sketch(cluster_key(CLUSTER), CELLS)
    sketch.apply(prints_of(*rows))
    return sketch.cells(0, CELLS)


def cells_of(actor: Actor) -> Cells:
    return actor.catalogue.sketch().cells(0, CELLS)


def test_the_sketch_is_that_of_records_present_holdings_and_members(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        tomb, beta = record("model/b", state=State.DELETED), Member("beta", 1)
        await actor.apply(put(record(), tomb, holding(), holding(D2, present=False), beta, place("a")))
        assert cells_of(actor) == recount(record(), tomb, holding(), beta)
        await actor.apply(put(holding(seq=9), Member("beta", 2)))
        assert cells_of(actor) == recount(record(), tomb, holding(), Member("beta", 2))
        await actor.apply(put(holding(seq=10, present=False)))
        assert cells_of(actor) == recount(record(), tomb, Member("beta", 2))
        await actor.apply(put(record(state=State.EXPIRED)))
        assert cells_of(actor) == recount(record(state=State.EXPIRED), tomb, Member("beta", 2))
        await actor.apply(Batch(forget_records=(tomb.key, record().key)))
        assert cells_of(actor) == recount(Member("beta", 2))

    tell(story)


NUMBERED = [bytes([number * 6]) * 32 for number in range(40)]
MANY = [
    *(record(f"model/{digest[0]}", digest=digest) for digest in NUMBERED),
    *(holding(digest, node="alpha") for digest in NUMBERED),
    *(holding(digest, node="beta", present=digest[0] % 4 == 0) for digest in NUMBERED),
    record("model/gone", state=State.DELETED, digest=NO_DIGEST),
    record("spore/revoked/x", digest=NO_DIGEST),
    Member("alpha", 4),
    Member("beta", 5),
]


def test_rows_are_found_by_their_fingerprints(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        await actor.apply(put(*MANY))
        wanted = [row for row in MANY if prints_of(row)][::3]
        found = await actor.rows_of([*(prints_of(row)[0] for row in wanted), 12345])
        assert sorted(map(repr, found)) == sorted(map(repr, wanted))
        assert await actor.rows_of([]) == []

    tell(story)


def test_pages_of_fingerprints_leave_no_gap_and_show_what_differs(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        await actor.apply(put(*MANY))
        pages = await actor.prints_pages()
        assert [page.first for page in pages[1:]] == [page.end for page in pages[:-1]]
        assert (pages[0].first, pages[-1].end) == (0, PREFIXES + 1)
        assert sorted(print_ for page in pages for print_ in page.fingerprints) == sorted(prints_of(*MANY))
        missing = prints_of(*MANY)[::4]
        ours: list[object] = []
        for page in pages:
            theirs = tuple(print_ for print_ in page.fingerprints if print_ not in missing)
            alien = page.first << 40 if page.first < PREFIXES else 7
            rows, lacking = await actor.compare(replace(page, fingerprints=(alien, *theirs)))
            assert lacking == (alien,)
            ours += [*rows.records, *rows.holdings, *rows.members]
        assert sorted(prints_of(*ours)) == sorted(missing)

    tell(story)


def test_the_highest_stamp_of_our_own_is_remembered_after_its_row_is_gone(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        await actor.apply(put(record(hlc=60)), Batch(forget_records=(record(hlc=60).key,)))
        assert actor.last_hlc() == 60
        await actor.apply(put(record(hlc=70), record(hlc=900, origin="beta"), holding(node="beta", seq=901)))
        assert actor.last_hlc() == 70
        await actor.apply(put(holding(seq=80)), put(holding(seq=75)), put(Member("alpha", 3)))
        assert actor.last_hlc() == 80
        await actor.apply(put(holding(seq=85)), Batch(forget_records=(record(hlc=70).key,)))
        assert actor.last_hlc() == 85

    tell(story)


def test_a_scan_goes_through_all_records_once_in_key_order_with_their_holdings(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        records = [record(f"model/{name}", hlc, origin) for name in "abc" for hlc in (5, 6) for origin in ("x", "y")]
        records.append(record("model/d", state=State.DELETED, digest=NO_DIGEST))
        held = (holding(), holding(node="beta", store=S2))
        await actor.apply(put(*reversed(records), *held, holding(node="gamma", present=False)))
        seen: list[tuple[Record, tuple[Holding, ...]]] = []
        after, last = START, False
        while not last:
            page, last = await actor.scan(after, 5)
            assert 0 < len(page) <= 5
            seen += page
            after = page[-1][0].key
        assert seen == [(row, held if row.digest == D1 else ()) for row in records]

    tell(story)


def test_a_scan_that_ends_with_a_full_page_says_so(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        await actor.apply(put(*(record(hlc=number) for number in range(4))))
        page, last = await actor.scan(START, 4)
        assert (len(page), last) == (4, True)

    tell(story)


def test_pages_hold_every_row_once_and_no_more_than_asked(tell: Tell) -> None:
    async def story(actor: Actor) -> None:
        records = [record(hlc=number) for number in range(7)]
        holdings = [holding(digest, present=present) for digest, present in ((D1, True), (D2, False), (D3, True))]
        members = [Member("alpha", 1), Member("beta", 1)]
        await actor.apply(put(*records, *holdings, *members, place("a")))
        pages = await actor.pages(3)
        assert max(len(page.records) + len(page.holdings) + len(page.members) for page in pages) == 3
        assert sum(pages, Rows()) == Rows(tuple(records), tuple(holdings), tuple(members))

    tell(story)


# Random histories

few = st.integers(min_value=0, max_value=3)
names = st.sampled_from(["model/a", "model/a/b", "game/alpha/x", "game/beta/\u00fc", "npz/\U0001f600"])
nodes = st.sampled_from(["alpha", "beta"])
digests = st.sampled_from([NO_DIGEST, D1, D2])
stores = st.sampled_from([S1, S2])
metas = st.sampled_from([(), (("k", "v"),), (("n", 1), ("m", -(1 << 62)))])
keys = st.builds(RecordKey, names, few, nodes)
records = st.builds(
    Record,
    names,
    few,
    nodes,
    digests,
    digests,
    few,
    few,
    st.sampled_from(State),
    st.sampled_from(["cluster", "peers"]),
    metas,
)
holdings = st.builds(Holding, nodes, stores, digests, few, st.booleans())
members = st.builds(Member, nodes, few, role=st.sampled_from(["worker", "training"]), store=stores)
paths = st.sampled_from(["a", "a/b", "b"])
places = st.builds(Place, paths, digests, few, few, few, few, st.booleans())


def some(rows: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(rows, max_size=6).map(tuple)


rows_of_all = st.builds(Rows, some(records), some(holdings), some(members))
batches_strategy = st.builds(Batch, rows_of_all, some(places), some(keys), some(paths))
groups = st.lists(st.lists(batches_strategy, max_size=4), min_size=1, max_size=4)


def answers(catalogue: Catalogue) -> list[object]:
    """What a catalogue says to every question that the random histories can have touched."""
    all_names = ["model/a", "model/a/b", "game/alpha/x", "game/beta/\u00fc", "npz/\U0001f600"]
    found: list[object] = [
        catalogue.sketch().cells(0, CELLS),
        catalogue.members(),
        [catalogue.member(node) for node in ("alpha", "beta")],
    ]
    found += [catalogue.versions(name) for name in all_names]
    found += [catalogue.versions_of(all_names), catalogue.statements_of([D1, D2, D3]), catalogue.places_at(["a", "b"])]
    found += [catalogue.place(path) for path in ("a", "a/b", "b")]
    for digest in (NO_DIGEST, D1, D2):
        found += [
            catalogue.statements(digest),
            catalogue.sharers(digest),
            catalogue.holdings(digest),
            catalogue.places(digest),
        ]
        found += [
            catalogue.holding(HoldingKey(digest, node, store)) for node in ("alpha", "beta") for store in (S1, S2)
        ]
    return found


@given(groups)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_both_catalogues_give_the_same_answers_after_any_history(history: list[list[Batch]]) -> None:
    async def story() -> None:
        async with over_sqlite() as sqlite, in_memory() as memory:
            for group in history:
                for actor in (sqlite, memory):
                    await actor.apply(*group)
                assert answers(sqlite.catalogue) == answers(memory.catalogue)
                assert sqlite.last_hlc() == memory.last_hlc()
            assert await sqlite.pages(4) == await memory.pages(4)
            assert await sqlite.scan(START, 3) == await memory.scan(START, 3)
            everything = sum(await sqlite.pages(100), Rows())
            assert cells_of(sqlite) == recount(*everything.records, *everything.holdings, *everything.members)

    asyncio.run(story())


@given(st.lists(batches_strategy, max_size=5))
@settings(max_examples=60, deadline=None)
def test_a_restored_snapshot_is_what_was_committed_then(history: list[Batch]) -> None:
    memory, again = MemoryCatalogue(CLUSTER, NODE), MemoryCatalogue(CLUSTER, NODE)
    memory.apply(history[:2])
    before, snapshot = answers(memory), memory.snapshot()
    memory.apply(history[2:])
    after = answers(memory)
    for _ in range(2):
        again.restore(snapshot)
        assert answers(again) == before
        assert again.scan(START, 100) == (tuple(page for page in again.scan(START, 100)[0]), True)
        again.apply(history[2:])
        assert answers(again) == after
