"""The manifest as a database on a disk: what survives, what is refused, and what one bad row or a full disk costs.

What it answers is tested in test_catalogue_contract.py, together with the simulator's catalogue.
"""

import asyncio
import contextlib
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import storage.mounts
from protocol.fingerprints import cluster_key, record_fingerprint
from protocol.values import Batch, Holding, Member, Place, Record, Rows, State
from storage.manifest import (
    START,
    Manifest,
    ManifestDamaged,
    ManifestFailed,
    ManifestRefused,
    rebuild,
)
from storage.migrations import MIGRATIONS
from storage.mounts import file_system_type, network_file_system
from storage.queries import GLOB_BYTES_MAX, Holder, KindTotal, Listed, QueryRefused, Totals

D1, D2, D3 = (bytes([number]) * 32 for number in (1, 2, 3))
S1, S2 = (bytes([number]) * 16 for number in (1, 2))
ROOT = Path(__file__).resolve().parent.parent


@asynccontextmanager
async def opened(folder: Path, cluster: str = "c", node: str = "alpha") -> AsyncIterator[Manifest]:
    manifest = await Manifest.open(folder / "manifest.db", cluster=cluster, node=node)
    try:
        yield manifest
    finally:
        await manifest.close()


def with_manifest(folder: Path, story: Callable[[Manifest], Awaitable[None]]) -> None:
    async def run() -> None:
        async with opened(folder) as manifest:
            await story(manifest)

    asyncio.run(run())


def record(name: str = "model/a.pth", hlc: int = 100, origin: str = "alpha", **changes: Any) -> Record:
    return replace(Record(name, hlc, origin, D1, D2, 10), **changes)


def holding(digest: bytes = D1, node: str = "alpha", store: bytes = S1, seq: int = 1, present: bool = True) -> Holding:
    return Holding(node, store, digest, seq, present)


def place(path: str, digest: bytes = D1) -> Place:
    return Place(path, digest, 1, 2, 10, 5)


def of(*records: Record) -> Batch:
    return Batch(Rows(records=records))


# Opening and closing


def test_rows_facts_and_counts_survive_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as manifest:
            assert (manifest.boot, manifest.scanned()) == (1, False)
            await manifest.apply([of(record()), Batch(Rows(holdings=(holding(),)), (place("a"),))])
            await manifest.set_scanned()
            await manifest.set_fact("note", "kept")
            fold = manifest.sketch().fold()
        async with opened(tmp_path) as manifest:
            assert (manifest.boot, manifest.scanned(), manifest.sketch().fold()) == (2, True, fold)
            assert manifest.last_hlc() == 100
            assert manifest.versions("model/a.pth") == (record(),)
            assert manifest.places(D1) == (place("a"),)
            assert manifest.fact("note") == "kept"
            await manifest.set_fact("note", None)
            assert manifest.fact("note") is None
            assert (await manifest.queries.totals()).artifacts == 1

    asyncio.run(story())


KILLED = """
import asyncio, os, sys
from pathlib import Path
from protocol.values import Batch, Record, Rows
from storage.manifest import Manifest

async def story():
    manifest = await Manifest.open(Path(sys.argv[1]), cluster="c", node="alpha")
    for hlc in range(1, 51):
        await manifest.apply([Batch(Rows(records=(Record("model/a", hlc, "alpha", bytes(32), bytes(32), 1),)))])
    asyncio.ensure_future(manifest.apply([Batch(Rows(records=tuple(
        Record("model/b", hlc, "alpha", bytes(32), bytes(32), 1) for hlc in range(5000))))]))
    await asyncio.sleep(0)
    os._exit(9)

asyncio.run(story())
"""


def test_what_was_applied_survives_the_death_of_the_process_and_the_rest_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "manifest.db"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False)
    assert ended.returncode == 9

    async def story(manifest: Manifest) -> None:
        assert len(manifest.versions("model/a")) == 50
        assert manifest.sketch().fold()[0] in (50, 5050)
        assert manifest.last_hlc() in (50, 4999)
        assert len((await manifest.scan(START, 10_000))[0]) == manifest.sketch().fold()[0]

    with_manifest(tmp_path, story)


def test_closing_twice_is_harmless_and_a_closed_manifest_takes_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as manifest:
            await manifest.close()
            with pytest.raises(ManifestFailed, match="is closed"):
                await manifest.apply([of(record())])
            with pytest.raises(ManifestFailed, match="cannot be read"):
                await manifest.scan(START, 1)

    asyncio.run(story())
    assert threading.active_count() < 20


def test_a_manifest_of_another_node_or_cluster_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path):
            pass
        with pytest.raises(ManifestRefused, match=r"belongs to node 'alpha', not 'beta': use that name"):
            await Manifest.open(tmp_path / "manifest.db", cluster="c", node="beta")
        with pytest.raises(ManifestRefused, match="belongs to cluster 'c', not 'd'"):
            await Manifest.open(tmp_path / "manifest.db", cluster="d", node="alpha")

    asyncio.run(story())


def test_a_newer_schema_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "manifest.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")

    async def story() -> None:
        with pytest.raises(ManifestRefused, match=r"written by a newer spore \(schema \d+, .*upgrade spore"):
            await Manifest.open(path, cluster="c", node="alpha")

    asyncio.run(story())
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)


def test_a_migration_that_fails_leaves_no_half_step_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with opened(tmp_path) as manifest:
            await manifest.apply([of(record())])
        steps = (*MIGRATIONS, "CREATE TABLE extra (x); INSERT INTO nowhere VALUES (1)")
        with monkeypatch.context() as patched:
            patched.setattr("storage.migrations.MIGRATIONS", steps)
            with pytest.raises(ManifestRefused, match="nowhere"):
                await Manifest.open(tmp_path / "manifest.db", cluster="c", node="alpha")
        steps = (*MIGRATIONS, "CREATE TABLE extra (x); INSERT INTO extra VALUES (1)")
        monkeypatch.setattr("storage.migrations.MIGRATIONS", steps)
        async with opened(tmp_path) as manifest:
            assert manifest.versions("model/a.pth") == (record(),)

    asyncio.run(story())
    with closing(sqlite3.connect(tmp_path / "manifest.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
        assert connection.execute("SELECT x FROM extra").fetchall() == [(1,)]


def test_a_folder_that_cannot_be_written_is_named_in_one_sentence(tmp_path: Path) -> None:
    async def story() -> None:
        with pytest.raises(ManifestRefused, match=r"cannot be opened .*check the disk"):
            await Manifest.open(tmp_path / "missing" / "manifest.db", cluster="c", node="alpha")

    asyncio.run(story())


# Network file systems


MOUNTS = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /mnt/nfs rw - nfs4 server:/export rw
31 30 0:41 / /mnt/nfs/local rw - xfs /dev/vdb rw
32 22 0:42 / /mnt/my\040share rw - cifs //server/share rw
33 22 0:43 / /over rw - ext4 /dev/vdc rw
34 22 0:44 / /over rw - fuse.sshfs host:/ rw
35 22 0:45 / /mnt/fuse rw - fuse.bindfs /dev/vdc rw
this line is not one
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/x", "ext4"),
        ("/mnt/nfs", "nfs4"),
        ("/mnt/nfs/deep/er", "nfs4"),
        ("/mnt/nfs2", "ext4"),
        ("/mnt/nfs/local/x", "xfs"),
        ("/mnt/my share/x", "cifs"),
        ("/over/x", "fuse.sshfs"),
        ("/mnt/fuse/x", "fuse.bindfs"),
    ],
)
def test_the_mount_nearest_above_a_path_tells_its_file_system(path: str, kind: str) -> None:
    assert file_system_type(path, MOUNTS) == kind


def test_a_manifest_on_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"22 1 254:0 / / rw - ext4 /dev/vda rw\n30 22 0:40 / {tmp_path.resolve()} rw - nfs4 server:/ rw\n"
    )
    monkeypatch.setattr(storage.mounts, "MOUNTS_FILE", mounts)
    assert network_file_system(tmp_path / "not yet there") == "nfs4"
    assert network_file_system(tmp_path.parent) is None

    async def story() -> None:
        with pytest.raises(ManifestRefused, match=r"network file system \(nfs4\).*local disk"):
            await Manifest.open(tmp_path / "manifest.db", cluster="c", node="alpha")

    asyncio.run(story())
    assert not (tmp_path / "manifest.db").exists()


# Bad rows and bad disks


POISON = {
    "an integer beyond 64 bits": record(hlc=1 << 63),
    "a name that is not UTF-8": record("model/\udcff"),
    "a digest of the wrong length": record(digest=b"short"),
    "a digest that is text": record(digest="x" * 32),
    "a size that is text": record(size="large"),
    "a negative size": record(size=-1),
    "no name": record(name=None),
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON.keys())
def test_one_poison_row_is_set_aside_and_the_rest_of_its_group_is_applied(tmp_path: Path, poison: Record) -> None:
    async def story(manifest: Manifest) -> None:
        good, beside, after = record("model/1"), record("model/2"), record("model/3", digest=D3)
        rows = Batch(Rows((beside, poison), (holding(),)), (place("a"),), forget_places=("b",))
        applied = await manifest.apply([of(good), rows, of(after)])
        assert [found.row for found in applied.refused] == [poison]
        (sentence,) = applied.quarantined
        assert "quarantined" in sentence
        assert sentence.isascii()
        assert [page[0] for page in (await manifest.scan(START, 10))[0]] == [good, beside, after]
        assert manifest.holdings(D1) == (holding(),)
        assert manifest.places(D1) == (place("a"),)
        assert manifest.sketch().fold()[0] == 4
        assert (await manifest.queries.totals()).artifacts == 3
        await manifest.apply([of(poison)])
        assert len(await manifest.quarantined()) == 1

    with_manifest(tmp_path, story)


def test_what_a_poison_row_was_counted_as_is_taken_back(tmp_path: Path) -> None:
    async def story(manifest: Manifest) -> None:
        batch = Batch(Rows((record(), record("model/x", digest=b""))), (place("a"), replace(place("b"), size=None)))
        applied = await manifest.apply([batch])
        assert len(applied.refused) == 2
        assert manifest.sketch().fold() == (1, record_fingerprint(cluster_key("c"), record()))

    with_manifest(tmp_path, story)


def test_the_quarantine_is_bounded_and_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(manifest: Manifest) -> None:
        bad = tuple(record(f"model/{number}", digest=b"") for number in range(1010))
        assert len((await manifest.apply([of(*bad)])).refused) == 1010
        kept = await manifest.quarantined()
        assert len(kept) == 1000
        assert "model/1009" in kept[-1][0]

    with_manifest(tmp_path, story)


@contextmanager
def files_no_larger_than(size_bytes: int) -> Iterator[None]:
    """The kernel refuses every write beyond this offset, in any file of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_fails_the_whole_group_and_the_next_one_goes_on(tmp_path: Path) -> None:
    async def story(manifest: Manifest) -> None:
        await manifest.apply([of(record())])
        before = manifest.sketch().fold()
        many = of(*(record(f"model/{number}", digest=bytes([number % 256]) * 32) for number in range(20_000)))
        manifest.save_leaves(D1, [D2])
        with files_no_larger_than(1 << 20), pytest.raises(ManifestFailed, match=r"the manifest .* cannot"):
            await manifest.apply([of(record("model/first")), many])
        assert manifest.sketch().fold() == before
        assert manifest.versions("model/first") == ()
        assert not (await manifest.apply([many])).refused
        assert manifest.sketch().fold()[0] == 20_001
        assert manifest.shelf.stored_leaves(D1) == D2

    with_manifest(tmp_path, story)
    with closing(sqlite3.connect(tmp_path / "manifest.db")) as connection:
        assert connection.execute("SELECT value FROM facts WHERE key = 'clean'").fetchone() == ("0",)


def test_a_cancelled_apply_leaves_no_transaction_behind(tmp_path: Path) -> None:
    async def story(manifest: Manifest) -> None:
        for turns in range(25):
            many = of(*(record(f"model/{turns}/{number}") for number in range(300)))
            task = asyncio.create_task(manifest.apply([many]))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await manifest.apply([of(record(f"npz/{turns}"))])
            assert manifest.versions(f"npz/{turns}")
        page, last = await manifest.scan(START, 100_000)
        assert last
        assert manifest.sketch().fold()[0] == len(page)
        assert len(page) % 300 == 25  # every cancelled group is there as a whole or not at all

    with_manifest(tmp_path, story)


def test_many_tasks_apply_at_once_without_mixing_their_transactions(tmp_path: Path) -> None:
    async def story(manifest: Manifest) -> None:
        bad = of(record("model/bad", digest=b""))
        groups = [[of(record(f"model/{n}")), *([bad] if n % 5 == 0 else [])] for n in range(40)]
        applied = await asyncio.gather(*(manifest.apply(group) for group in groups))
        assert [len(found.refused) for found in applied] == [int(n % 5 == 0) for n in range(40)]
        assert manifest.sketch().fold()[0] == 40

    with_manifest(tmp_path, story)


# Damage and rebuild


def damage(path: Path, start: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * (path.stat().st_size - start))


async def filled(folder: Path) -> None:
    async with opened(folder) as manifest:
        await manifest.apply([of(*(record(f"model/{number}") for number in range(2000)))])
        await manifest.set_scanned()


def unclean(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE facts SET value = '0' WHERE key = 'clean'")


@pytest.mark.parametrize("start", [0, 64 << 10], ids=["from its first byte", "in the middle"])
def test_a_damaged_manifest_is_refused_with_the_way_to_rebuild_it(tmp_path: Path, start: int) -> None:
    path = tmp_path / "manifest.db"

    async def story() -> None:
        await filled(tmp_path)
        unclean(path)
        damage(path, start)
        with pytest.raises(ManifestDamaged, match=r"is damaged .*`spore verify --rebuild`"):
            await Manifest.open(path, cluster="c", node="alpha")
        broken = path.read_bytes()
        aside = rebuild(path)
        assert aside == tmp_path / "manifest.db.damaged-1"
        assert aside.read_bytes() == broken
        async with opened(tmp_path) as manifest:
            assert manifest.sketch().fold() == (0, 0)
            assert not manifest.scanned()

    asyncio.run(story())


def test_a_rebuild_keeps_what_peers_remember_of_us_and_moves_the_log_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest.db"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False)
    assert Path(f"{path}-wal").exists()
    aside = rebuild(path)
    assert aside is not None
    assert not Path(f"{path}-wal").exists()

    async def story() -> None:
        async with opened(tmp_path) as manifest:
            assert manifest.boot == 2
            assert manifest.last_hlc() in (50, 4999)
            assert manifest.versions("model/a") == ()
            assert not manifest.scanned()

    asyncio.run(story())
    with closing(sqlite3.connect(aside)) as connection:
        assert connection.execute("SELECT count(*) FROM records WHERE name = 'model/a'").fetchone() == (50,)


def test_every_rebuild_keeps_its_own_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest.db"
    assert rebuild(path) is None
    assert rebuild(path) == tmp_path / "manifest.db.damaged-1"
    assert rebuild(path) == tmp_path / "manifest.db.damaged-2"


# Chunk lists


def test_a_chunk_list_is_found_at_once_and_committed_with_the_next_group(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(tmp_path) as manifest:
            manifest.save_leaves(D1, [D2, D3])
            assert manifest.load_leaves(D1) == (D2, D3)
            assert manifest.shelf.stored_leaves(D1) is None
            await manifest.apply([of(record())])
            assert manifest.shelf.stored_leaves(D1) == D2 + D3
            manifest.save_leaves(D2, [D3])
        async with opened(tmp_path) as manifest:
            assert (manifest.load_leaves(D1), manifest.load_leaves(D2)) == ((D2, D3), (D3,))
            assert manifest.load_leaves(D3) is None
            with pytest.raises(ValueError, match="32 bytes"):
                manifest.save_leaves(D1, [b"short"])
            with pytest.raises(ValueError, match="32 bytes"):
                manifest.save_leaves(b"short", [D1])
            await manifest.save_waiting_leaves()

    asyncio.run(story())


def test_a_chunk_list_goes_when_neither_a_record_nor_a_place_needs_it(tmp_path: Path) -> None:
    async def story(manifest: Manifest) -> None:
        manifest.save_leaves(D1, [D2])
        await manifest.apply([of(record()), Batch(places=(place("a"),))])
        await manifest.apply([Batch(forget_records=(record().key,))])
        assert manifest.load_leaves(D1) == (D2,)
        await manifest.apply([Batch(places=(place("a", D3),))])
        assert manifest.load_leaves(D1) is None
        manifest.save_leaves(D3, [D2])
        await manifest.apply([of(record(digest=D3))])
        await manifest.apply([Batch(forget_places=("a",))])
        assert manifest.load_leaves(D3) == (D2,)
        await manifest.apply([of(record(digest=D3, state=State.DELETED))])
        assert manifest.load_leaves(D3) is None

    with_manifest(tmp_path, story)


def test_threads_look_up_places_and_chunk_lists_while_groups_are_applied(tmp_path: Path) -> None:
    problems: list[BaseException] = []

    def work(manifest: Manifest, number: int, stop: threading.Event) -> None:
        digest = bytes([number]) * 32
        try:
            while not stop.is_set():
                manifest.save_leaves(digest, [digest])
                assert manifest.load_leaves(digest) == (digest,)
                assert all(found.digest == digest for found in manifest.places_of(digest))
                found = manifest.shelf.place(f"{number}")
                assert found is None or found.digest == digest
        except BaseException as problem:
            problems.append(problem)

    async def story(manifest: Manifest) -> None:
        stop = threading.Event()
        threads = [threading.Thread(target=work, args=(manifest, number, stop)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                await manifest.apply([Batch(places=tuple(place(f"{n}", bytes([n]) * 32) for n in range(4)))])
        finally:
            stop.set()
            for thread in threads:
                await asyncio.to_thread(thread.join)
        assert problems == []
        assert manifest.places_of(D1) == (place("1", D1),)

    with_manifest(tmp_path, story)


# Questions of the command line


def test_a_list_shows_the_newest_live_version_of_each_name_with_its_distinct_stores(tmp_path: Path) -> None:
    async def story(manifest: Manifest) -> None:
        old, new = record(hlc=1), record(hlc=2, digest=D2)
        gone = record("model/gone", 1)
        game = record("game/beta/x y.db", 1, "beta", digest=D3)
        holders = (
            holding(D2, "alpha", S1),
            holding(D2, "beta", S1),
            holding(D2, "gamma", S2),
            holding(D2, "delta", bytes(16), present=False),
            holding(D1, "delta", bytes(16)),
        )
        await manifest.apply([Batch(Rows((old, new, gone, replace(gone, hlc=2, state=State.DELETED), game), holders))])
        ask = manifest.queries.list_artifacts
        assert await ask() == (Listed(game, 0), Listed(new, 2))
        assert await ask("model/*") == await ask(limit=1, offset=1) == (Listed(new, 2),)
        assert await ask("*.d?") == await ask("game/beta/x [xyz].db") == (Listed(game, 0),)
        assert await ask("model/*", among=["alpha", "beta"]) == (Listed(new, 1),)
        assert await ask("model/*", among=[]) == (Listed(new, 0),)
        assert await ask("'; DROP TABLE records; --") == ()
        assert (await manifest.queries.count_artifacts(), await manifest.queries.count_artifacts("g*")) == (2, 1)

    with_manifest(tmp_path, story)


def test_where_names_every_holder_of_the_newest_version_with_what_it_says_of_itself(tmp_path: Path) -> None:
    async def story(manifest: Manifest) -> None:
        new, beta = record(hlc=2, digest=D2), Member("beta", 1, domain="eu", ephemeral=True)
        held = (holding(D2, "alpha"), holding(D2, "beta", S2), holding(D2, "gamma", present=False), holding(D1, "d"))
        await manifest.apply([Batch(Rows((record(hlc=1), new), held, (beta,)))])
        found = await manifest.queries.where("model/a.pth")
        assert found is not None
        assert (found.record, found.versions) == (new, 2)
        assert found.holders == (Holder(held[0], None), Holder(held[1], beta))
        assert await manifest.queries.where("model/*") is None
        assert await manifest.queries.where("model/\udcff") is None
        await manifest.apply([of(record(hlc=3, state=State.DELETED))])
        assert await manifest.queries.where("model/a.pth") is None

    with_manifest(tmp_path, story)


def test_totals_follow_every_change_of_a_record(tmp_path: Path) -> None:
    async def story(manifest: Manifest) -> None:
        await manifest.apply([of(record(size=5), record(hlc=101, size=7), record("npz/x", size=11))])
        kinds = (KindTotal("model", 2, 12), KindTotal("npz", 1, 11))
        assert await manifest.queries.totals() == Totals(3, 23, kinds)
        await manifest.apply([of(record(size=0, state=State.DELETED)), Batch(forget_records=(record("npz/x").key,))])
        assert await manifest.queries.totals() == Totals(1, 7, (KindTotal("model", 1, 7),))

    with_manifest(tmp_path, story)


def test_our_own_store_is_counted_by_digest_and_listed_by_path(tmp_path: Path) -> None:
    async def story(manifest: Manifest) -> None:
        places = (place("a"), place("b"), place("c", D2))
        await manifest.apply([Batch(places=places)])
        assert await manifest.queries.held() == (2, 20)
        assert await manifest.queries.count_places() == (3, 30)
        assert await manifest.queries.places("", 2) == places[:2]
        assert await manifest.queries.places("b", 2) == places[2:]

    with_manifest(tmp_path, story)


@pytest.mark.parametrize("glob", ["x" * (GLOB_BYTES_MAX + 1), "*a" * 20, "\udcff"])
def test_a_pattern_that_could_cost_minutes_is_refused(tmp_path: Path, glob: str) -> None:
    async def story(manifest: Manifest) -> None:
        with pytest.raises(QueryRefused, match="pattern"):
            await manifest.queries.list_artifacts(glob)

    with_manifest(tmp_path, story)
