"""What an agent does every so often while it runs: it looks at the disk, its transfers, leftovers, its certificate.

Each is a task of the agent that never ends by itself; one that does makes the agent unhealthy (see `Agent.healthy`).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from node.certificates import renewal_due
from protocol.effects import Report
from protocol.events import DiskChanged
from storage.refusals import StoreError
from storage.room import RoomState

if TYPE_CHECKING:
    from node.agent import Agent

DISK_LOOK_SECONDS = 2.0  # between looks at the disk's room; a transfer's own reservation is exact at any time
COUNT_SECONDS = 300.0  # between counts of what is held for others: a second of work with a million files
COMMITTED_SECONDS = 20.0  # after its publication a file is in the manifest, or its disk has failed
WATCH_SECONDS = 2.0  # between looks for transfers that stall: they are given a minute or more
LOG_FULL_SECONDS = 5.0  # a burst that waits for a moment is what the bound is for
RENEWAL_LOOK_SECONDS = 3600.0  # certificates live 7 or 90 days and are renewed at two thirds
SWEEP_SECONDS = 3600.0  # between looks for leftovers: what is in the way at once makes room by itself


async def look_at_disk(agent: Agent) -> None:
    while True:
        tell_room(agent, await agent.in_thread(agent.room.state))
        await asyncio.sleep(DISK_LOOK_SECONDS)


def tell_room(agent: Agent, state: RoomState) -> None:
    agent.post(DiskChanged(state.accepting, state.local, state.capacity_bytes, state.used_bytes, state.excess_bytes))


async def count_held(agent: Agent) -> None:
    """What we hold for others, for `max_bytes`: counted now and then, and in between what is published is added."""
    while True:
        await asyncio.sleep(COUNT_SECONDS)
        before = agent.room.published_since()
        await asyncio.sleep(COMMITTED_SECONDS)
        agent.held_bytes = await agent.manifest.queries.held_for_others(agent.node)
        agent.room.counted_anew(before)


async def watch_transfers(agent: Agent) -> None:
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        agent.transfers.watch()
        await agent.in_thread(agent.carriage.desk.tidy)


async def watch_log(agent: Agent) -> None:
    """Say when what is new has to wait for room in the log, and when it has not any more."""
    told = False
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        waits_seconds = agent.committer.waits_seconds()
        if waits_seconds > LOG_FULL_SECONDS and not told:
            entries = agent.wal.usage().live_entries
            agent.report(
                Report(
                    "warning",
                    "log_full",
                    f"the write-ahead log is full: puts and files wait until other nodes have received some of its "
                    f"{entries} undelivered entries (`spore risk` says what keeps them)",
                )
            )
        elif told and not waits_seconds:
            agent.report(Report("info", "log_has_room", "the write-ahead log has room again"))
        told = waits_seconds > LOG_FULL_SECONDS or (told and waits_seconds > 0)


async def sweep(agent: Agent) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        try:
            await agent.in_thread(agent.depot.sweep, False)
        except StoreError as problem:  # a disk that fails for a moment does not end the sweeps of later hours
            agent.report(Report("warning", "not_swept", str(problem)))


async def look_at_certificate(agent: Agent) -> None:
    while True:
        if renewal_due(agent.contexts.identity.facts, time.time()):
            await agent.renew()
        await asyncio.sleep(RENEWAL_LOOK_SECONDS)


async def copy_outside(agent: Agent) -> None:
    await agent.external.run_for_ever()


FOR_EVER = (look_at_disk, count_held, watch_transfers, watch_log, sweep, look_at_certificate, copy_outside)
