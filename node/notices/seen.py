"""What a source of notices says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


class SourceTrouble(Exception):
    """A source could not be read; one sentence. It is asked again."""


@dataclass(frozen=True, slots=True)
class Coming:
    """The machine will be taken away. `at` is seconds since 1970, None when only the danger is known, not the time."""

    at: float | None
    why: str


@dataclass(frozen=True, slots=True)
class Seen:
    """One look: what is coming, if anything is; and, from sources that know it, whether the machine is a spot one."""

    coming: Coming | None = None
    spot: str = ""  # the sentence that says so; "" when it is none, or the source does not know


def read_time(text: str) -> float | None:
    """Seconds since 1970 of an ISO 8601 or an HTTP date; None when it is neither."""
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = read(text.strip())
        except (ValueError, TypeError):
            continue
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return None
