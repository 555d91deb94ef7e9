"""The effects about a shared root: our mark in it, the marks of others, and files that mates have published."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from protocol.effects import Index, LookForMark, Mark, Report, Share
from protocol.events import Indexed, MarkSeen
from protocol.values import Place
from storage.refusals import StoreError

if TYPE_CHECKING:
    from node.agent import Agent

INDEX_SECONDS = 3.0  # between looks for a file that a mate has published
INDEX_LOOKS = 25  # together longer than an NFS client keeps what it knows of a folder


def perform(agent: Agent, effect: Mark | LookForMark | Share | Index) -> None:
    match effect:
        case Mark():
            agent.spawn(_mark(agent, effect))
        case LookForMark():
            agent.spawn(_look_for_mark(agent, effect))
        case Share():
            agent.depot.mates.share()
        case Index():
            agent.spawn(_index(agent, effect))


async def _mark(agent: Agent, effect: Mark) -> None:
    try:
        await agent.in_thread(agent.depot.mates.mark, effect.nonce)
    except StoreError as problem:  # then mates do not find us, and say so
        agent.report(Report("warning", "not_marked", str(problem)))


async def _look_for_mark(agent: Agent, effect: LookForMark) -> None:
    found = False
    with suppress(StoreError):
        found = await agent.in_thread(agent.depot.mates.sees_mark, effect.peer, effect.nonce)
    agent.post(MarkSeen(effect.peer, effect.nonce, found))


async def _index(agent: Agent, effect: Index) -> None:
    """What a mate wrote shows here as soon as our client looks again, within a minute at most."""
    place: Place | None = None
    for _ in range(INDEX_LOOKS):
        with suppress(StoreError):
            place = await agent.in_thread(agent.depot.mates.index, effect.record, effect.path)
        if place is not None:
            break
        await asyncio.sleep(INDEX_SECONDS)
    agent.post(Indexed(effect.record, place))
