"""What happens at a stated moment: kills, partitions and full disks that a person (or a scenario) asked for."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from protocol.fleet import Fleet
from protocol.values import NodeId
from simulations.driver import SimNode
from simulations.links import Cut
from simulations.surroundings import Surroundings

PARTITION_SECONDS = "10-40"  # longer than any heartbeat, when no time is given
SECONDS_MAX = 3_600  # an hour of virtual time is minutes of real time for a large fleet
FULL_SHARE = 0.9999  # of the disk, used by somebody else: not even the node's own artifacts fit


@dataclass(frozen=True, slots=True)
class Action:
    """One event of a script: `kill` (machine and disk are gone), `part`, `halve`, `fill`; `there` is the other side."""

    what: str
    at_ms: int
    until_ms: int = 0
    here: tuple[NodeId, ...] = ()
    there: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asked for: `option` is kill, partition or fill, `text` as it was written."""

    option: str
    text: str

    def actions(self, fleet: Fleet) -> list[Action]:
        """What it means in this fleet. Raises ValueError with one sentence when it means nothing."""
        return [{"kill": _kill, "partition": _partition, "fill": _fill}[self.option](self.text, fleet)]


def _kill(text: str, fleet: Fleet) -> Action:
    glob, colon, seconds = text.rpartition(":")
    if not colon:
        raise ValueError(f"--kill {text}: write GLOB:SECONDS, such as 'vast-*:20'")
    return Action("kill", _ms(seconds, f"--kill {text}"), here=_matching(glob, fleet, f"--kill {text}"))


def _partition(text: str, fleet: Fleet) -> Action:
    what = f"--partition {text}"
    sides, colon, times = text.partition(":")
    left, bar, right = sides.partition("|")
    if not bar:
        raise ValueError(f"{what}: write 'A|B' or 'A|B:FROM-TO', two globs and from when to when in seconds")
    start, dash, end = (times if colon else PARTITION_SECONDS).partition("-")
    if not dash:
        raise ValueError(f"{what}: write the time as FROM-TO in seconds, such as :10-40")
    here, there = _matching(left, fleet, what), _matching(right, fleet, what)
    both = [name for name in here if name in there]
    if both:
        raise ValueError(f"{what}: {both[0]} is on both sides; write globs that do not overlap")
    start_ms, end_ms = _ms(start, what), _ms(end, what)
    if end_ms <= start_ms:
        raise ValueError(f"{what}: it must end after it begins; write FROM-TO, such as :10-40")
    return Action("part", start_ms, end_ms, here, there)


def _fill(text: str, fleet: Fleet) -> Action:
    return Action("fill", 0, here=_matching(text, fleet, f"--fill {text}"))


def _matching(glob: str, fleet: Fleet, what: str) -> tuple[NodeId, ...]:
    names = tuple(name for name in sorted(fleet.hosts) if fnmatchcase(name, glob))
    if not names:
        raise ValueError(f"{what}: no host matches {glob!r}; the hosts are {', '.join(sorted(fleet.hosts)[:12])}")
    return names


def _ms(seconds: str, what: str) -> int:
    """A moment of the run, in milliseconds."""
    if not seconds.isascii() or not seconds.isdigit() or int(seconds) > SECONDS_MAX:
        raise ValueError(f"{what}: {seconds!r} is no time; write whole seconds from 0 to {SECONDS_MAX}")
    return int(seconds) * 1000


class Script:
    """Performs actions; those with an end are ended even when the run is healed before."""

    def __init__(self, around: Surroundings, nodes: dict[NodeId, SimNode], actions: tuple[Action, ...]) -> None:
        self.around = around
        self.nodes = nodes
        self.actions = actions

    def schedule(self) -> None:
        for action in self.actions:
            self.around.schedule.after(action.at_ms, getattr(self, f"_{action.what}"), action)

    def _kill(self, action: Action) -> None:
        for name in action.here:
            self.nodes[name].vanish()

    def _fill(self, action: Action) -> None:
        for name in action.here:
            store = self.nodes[name].store
            store.other_bytes = int(store.capacity_bytes * FULL_SHARE)
            self.nodes[name].bite("disk_filled")

    def _part(self, action: Action) -> None:
        cut = Cut(dict.fromkeys(action.here), dict.fromkeys(action.there))
        self.around.network.cut(cut)
        self.around.schedule.after(action.until_ms - action.at_ms, self.around.network.mend, cut)

    def _halve(self, action: Action) -> None:
        """The even against the odd half of the names, which mixes domains and roles."""
        names = sorted(self.nodes)
        halves = Action("part", action.at_ms, action.until_ms, tuple(names[::2]), tuple(names[1::2]))
        self._part(halves)
