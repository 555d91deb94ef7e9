"""What the agent reported lately is kept, bounded, and given to whoever follows."""

import asyncio

from node.journal import KEPT_MAX, Journal
from protocol.effects import Report


def test_what_was_reported_is_told_in_order_and_goes_to_the_log_as_well() -> None:
    logged: list[Report] = []
    journal = Journal(logged.append)
    for number in range(KEPT_MAX + 5):
        journal.report(Report("info", "peer_up", f"number {number}"))

    async def story() -> None:
        told = [row["message"] async for row in journal.events(follow=False)]
        assert told == [f"number {number}" for number in range(5, KEPT_MAX + 5)]

    asyncio.run(story())
    assert len(logged) == KEPT_MAX + 5


def test_a_follower_hears_what_comes_and_leaves_nothing_behind() -> None:
    journal = Journal(lambda report: None)
    journal.report(Report("info", "before", "before"))

    async def story() -> None:
        rows = journal.events(follow=True)
        assert (await anext(rows))["message"] == "before"
        coming = asyncio.ensure_future(anext(rows))
        await asyncio.sleep(0)
        journal.report(Report("warning", "news", "news"))
        row = await coming
        assert (row["level"], row["event"], row["message"]) == ("warning", "news", "news")
        await rows.aclose()  # type: ignore[attr-defined]  # it is a generator
        journal.report(Report("info", "after", "after"))
        assert [row["message"] async for row in journal.events(follow=False)] == ["before", "news", "after"]

    asyncio.run(story())
