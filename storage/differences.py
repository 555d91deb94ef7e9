"""What another node lacks of the manifest, and what it has that we lack: rows by fingerprint, pages of fingerprints.

A fingerprint begins with its row's digest (see `protocol.fingerprints`), so the indexes by digest find rows of records
and holdings. Rows without bytes (tombstones, declarations, members) are few, and are all looked through.
"""

# ruff: noqa: S608 - statements are put together from this package's own column lists; values are always bound

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

from protocol.fingerprints import (
    PREFIXES,
    digest_bound,
    holding_fingerprint,
    member_fingerprint,
    prefix_of,
    record_fingerprint,
)
from protocol.messages import Prints
from protocol.values import NO_DIGEST, Rows, joined
from storage.manifest_rows import (
    HOLDING_COLUMNS,
    MEMBER_COLUMNS,
    RECORD_COLUMNS,
    Row,
    holding_of,
    member_of,
    record_of,
)

SEARCHED_AT_ONCE = 400  # prefixes in one statement: some milliseconds of the reading thread
PAGE_PRINTS = 2_000  # fingerprints in a page, on average: 18 kB, and 10 ms of work for the other side
WIDEST_PREFIXES = PREFIXES >> 4  # of one page: a manifest of a few rows sends 17 messages

Read = Callable[[str, Sequence[object]], Awaitable[list[Row]]]
Printed = dict[int, Rows]  # each row by its fingerprint

_RECORDS_LIKE = (
    f"WITH wanted (low, high) AS (VALUES {{}}) SELECT {', '.join('r.' + c for c in RECORD_COLUMNS.split(', '))} "
    "FROM wanted JOIN records AS r ON r.state = 0 AND r.digest >= wanted.low AND r.digest < wanted.high"
)
_HOLDINGS_LIKE = (
    f"WITH wanted (low, high) AS (VALUES {{}}) SELECT {', '.join('h.' + c for c in HOLDING_COLUMNS.split(', '))} "
    "FROM wanted JOIN holdings AS h ON h.digest >= wanted.low AND h.digest < wanted.high AND h.present = 1"
)
_BARE_RECORDS = (
    f"SELECT {RECORD_COLUMNS} FROM records WHERE state <> 0 "
    f"UNION ALL SELECT {RECORD_COLUMNS} FROM records WHERE state = 0 AND digest = ?"
)
_MEMBERS = f"SELECT {MEMBER_COLUMNS} FROM members"


class Differences:
    """Questions of `Manifest`'s reading connection; `read` runs a statement there."""

    def __init__(self, read: Read, key: bytes, count_rows: Callable[[], int]) -> None:
        self._read = read
        self._key = key
        self._count_rows = count_rows

    async def rows_of(self, fingerprints: Iterable[int]) -> AsyncIterator[Rows]:
        """The rows with these fingerprints, as far as they are here, some hundred at a time."""
        wanted = dict.fromkeys(fingerprints)
        prefixes = sorted({prefix_of(fingerprint) for fingerprint in wanted})
        for start in range(0, len(prefixes), SEARCHED_AT_ONCE):
            spans = [(prefix, prefix + 1) for prefix in prefixes[start : start + SEARCHED_AT_ONCE]]
            found = {print_: row for print_, row in (await self._spanned(spans)).items() if print_ in wanted}
            for print_ in found:
                del wanted[print_]
            if found:
                yield joined(found.values())
        if wanted:
            bare = [row for print_, row in (await self._bare()).items() if print_ in wanted]
            if bare:
                yield joined(bare)

    async def prints_pages(self) -> AsyncIterator[Prints]:
        """All fingerprints, ascending, in pages that leave no gap between them."""
        step = min(WIDEST_PREFIXES, max(1, PREFIXES * PAGE_PRINTS // (self._count_rows() + 1)))
        for first in range(0, PREFIXES, step):
            end = min(first + step, PREFIXES)
            yield Prints(first, end, tuple(sorted(await self._spanned([(first, end)]))))
        yield Prints(PREFIXES, PREFIXES + 1, tuple(sorted(await self._bare())))

    async def compare(self, page: Prints) -> tuple[Rows, tuple[int, ...]]:
        """(our rows that the page lacks, fingerprints in it that we lack)."""
        bare = page.first >= PREFIXES
        ours = await self._bare() if bare else await self._spanned([(page.first, page.end)])
        theirs = dict.fromkeys(page.fingerprints)
        lacking = tuple(print_ for print_ in theirs if print_ not in ours)
        return joined(row for print_, row in ours.items() if print_ not in theirs), lacking

    async def _spanned(self, spans: list[tuple[int, int]]) -> Printed:
        """Rows with bytes whose prefixes lie in these spans."""
        bounds = [digest_bound(prefix) for span in spans for prefix in span]
        marks = ", ".join(["(?, ?)"] * len(spans))
        printed: Printed = {}
        for row in await self._read(_RECORDS_LIKE.format(marks), bounds):
            record = record_of(row)
            if record.digest != NO_DIGEST:
                printed[record_fingerprint(self._key, record)] = Rows(records=(record,))
        for row in await self._read(_HOLDINGS_LIKE.format(marks), bounds):
            holding = holding_of(row)
            printed[holding_fingerprint(self._key, holding)] = Rows(holdings=(holding,))
        return printed

    async def _bare(self) -> Printed:
        """Rows without bytes, all of them."""
        records = map(record_of, await self._read(_BARE_RECORDS, (NO_DIGEST,)))
        printed = {record_fingerprint(self._key, record): Rows(records=(record,)) for record in records}
        members = map(member_of, await self._read(_MEMBERS, ()))
        return printed | {member_fingerprint(self._key, member): Rows(members=(member,)) for member in members}
