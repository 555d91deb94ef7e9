"""Simulated fleets: the same core as the agents run, in virtual time, on disks and networks that fail.

A run is a function of (scenario, nodes, seed): it draws its options from the seed, lets users work while faults
strike, heals everything, waits until all has settled, and lets an oracle outside of the nodes judge. `reproduce` names
the command that runs it again, bit for bit, on any machine.

Follow one run: `scenarios` names them → `options` and `fleets` draw faults and fleet → `world` builds nodes (`driver`
performs the core's effects on `disks`, `depot`, `network` and `streams`) → `clients` (in a rehearsal `workers`) put,
`faults` and `script` strike → `oracle` listens all the while → `verdict` looks at the end → `report` says what it was.
`losses` and `remedies` explain a rehearsal, `samples` and `plot` show a run, `shrink` makes a failing one smaller.
"""

from __future__ import annotations

from simulations.report import Report
from simulations.scenarios import SCENARIOS, Case, run, run_case, run_sampled
from simulations.script import Request

__all__ = ["SCENARIOS", "Case", "Report", "Request", "run", "run_case", "run_sampled"]
