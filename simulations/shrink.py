"""Make a failing case smaller while it still fails in the same way: few nodes and few faults are easier to follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from simulations.options import RATES
from simulations.report import Report
from simulations.scenarios import NODES_MIN, Case, build_case

TRIES_MAX = 60  # runs; small ones take a quarter of a second each

Runner = Callable[[Case], Report]


def shrink(case: Case, found: Report, run: Runner) -> tuple[Case, Report]:
    """The smallest case that was found, and its report. Greedy: what still fails is the new beginning."""
    wanted = rules(found)
    tries = 0
    going = True
    while going:
        going = False
        for smaller in _smaller(case):
            if tries >= TRIES_MAX:
                return case, found
            tries += 1
            result = run(smaller)
            if rules(result) & wanted:
                case, found, going = smaller, result, True
                break
    return case, found


def rules(report: Report) -> set[str]:
    """What was broken: the sentences without times, names and numbers."""
    return {" ".join(word for word in line.split() if word.isalpha()) for line in report.violations}


def _smaller(case: Case) -> Iterator[Case]:
    """Cases a step smaller, the greatest steps first."""
    options = build_case(case).options
    if case.fleet is None:
        for nodes in dict.fromkeys((NODES_MIN, (NODES_MIN + options.nodes) // 2, options.nodes - 1)):
            if NODES_MIN <= nodes < options.nodes:
                yield replace(case, nodes=nodes)
    active = tuple(name for name in _active(case))
    if active:
        half = len(active) // 2
        parts = [(), active[:half], active[half:], *(active[:i] + active[i + 1 :] for i in range(len(active)))]
        yield from (replace(case, faults=part) for part in dict.fromkeys(parts) if len(part) < len(active))
    seconds = options.busy_ms // 1000
    if seconds > 4:
        yield replace(case, seconds=seconds // 2)
        yield replace(case, seconds=seconds * 3 // 4)
    if options.operations > 2:
        yield replace(case, operations=options.operations // 2)
        yield replace(case, operations=options.operations * 3 // 4)


def _active(case: Case) -> list[str]:
    """The faults that exist in this case at all."""
    options = build_case(case).options
    kinds = [kind for kind, _ in options.weights] if options.faults_per_second else []
    return kinds + [name for name, field in RATES.items() if getattr(options, field)]
