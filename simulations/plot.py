"""A run as a picture: coverage by the age of a record against theory, copies over time, control traffic per node.

Vertical lines mark what was rehearsed. The title carries the command that makes the picture again.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from simulations.samples import Samples, hop_ms, theory
from simulations.svg import Curve, Panel, picture


def draw(samples: Samples, command: str, verdict: str) -> str:
    """The whole SVG, one text."""
    marks = _marks(samples)
    return picture(verdict, command, (_coverage(samples), _copies(samples, marks), _traffic(samples, marks)))


def _marks(samples: Samples) -> tuple[tuple[float, str], ...]:
    """What was asked to happen and when; `fill` holds from the beginning on and needs no line."""
    script = samples.world.options.script
    killed: Counter[int] = Counter()
    for action in script:
        killed[action.at_ms] += len(action.here) if action.what == "kill" else 0
    marks = [(at_ms / 1000, f"{count} killed") for at_ms, count in sorted(killed.items()) if count]
    for action in script:
        if action.until_ms:
            marks += [(action.at_ms / 1000, "cut"), (action.until_ms / 1000, "healed")]
    return tuple(marks)


def _coverage(samples: Samples) -> Panel:
    nodes = len(samples.world.nodes)
    total = sum(samples.delays_ms.values())
    points = [(1.0, 0.0)]
    known = 0
    for delay_ms in sorted(samples.delays_ms):
        known += samples.delays_ms[delay_ms]
        points.append((max(1.0, float(delay_ms)), 100 * known / max(1, total)))
    ideal = [(max(1.0, at), 100 * share) for at, share in theory(nodes, hop_ms(samples.world))]
    last = max(points[-1][0], ideal[-1][0])
    curves = (
        Curve("measured", [*points, (last, points[-1][1])], "a"),
        Curve("doubling each hop", [*ideal, (last, 100.0)], "b dash"),
    )
    title = f"Coverage: how soon a record is known, {nodes} nodes"
    return Panel(title, "milliseconds since its first commit", "% of nodes", curves, 100, log=True)


def _copies(samples: Samples, marks: tuple[tuple[float, str], ...]) -> Panel:
    rows = [row for row in samples.rows if row.copies_mean]
    wanted = samples.world.fleet.routing.min_copies + 1.0
    curves = (
        Curve("mean", [(row.seconds, row.copies_mean) for row in rows], "a"),
        Curve("wanted", [(row.seconds, wanted) for row in rows], "a dash"),
        Curve("fewest", [(row.seconds, row.copies_min) for row in rows], "b"),
    )
    y_max = max([row.copies_mean for row in rows], default=1.0) * 1.1
    return Panel("Copies of an artifact, the first included", "seconds", "stores", curves, max(2, y_max), marks=marks)


def _traffic(samples: Samples, marks: tuple[tuple[float, str], ...]) -> Panel:
    step = max(1, 1_000 // samples.every_ms)
    rows = samples.rows[::step]
    points = [
        (
            after.seconds,
            (after.control_bytes - before.control_bytes) / max(1, after.up) / (after.seconds - before.seconds) / 1024,
        )
        for before, after in pairwise(rows)
    ]
    curve = Curve("sent", points, "a")
    y_max = max([y for _, y in points], default=1.0) * 1.1
    return Panel("Control traffic of a node", "seconds", "KiB/s", (curve,), max(0.1, y_max), marks=marks)
