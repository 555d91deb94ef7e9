"""Schedules as cron writes them, in UTC, so that every node says the same. The one module that knows cronsim."""

from __future__ import annotations

from datetime import UTC, datetime

from cronsim import CronSim, CronSimError


def check_schedule(text: str) -> str:
    """A schedule as cron writes it. Raises ValueError with a sentence."""
    try:
        CronSim(text, datetime.now(UTC))
    except CronSimError as problem:
        raise ValueError(f"{text!r} is not a schedule: {problem}") from problem
    return text


def last_due(schedule: str, now: float) -> int:
    """The latest scheduled moment that is not in the future, in seconds since 1970."""
    after = datetime.fromtimestamp(int(now) + 1, UTC)
    return int(next(CronSim(schedule, after, reverse=True)).timestamp())


def next_due(schedule: str, now: float) -> int:
    return int(next(CronSim(schedule, datetime.fromtimestamp(int(now), UTC))).timestamp())
