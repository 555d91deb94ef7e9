"""Simulated fleets: the same core as the agents run, in virtual time, on disks and networks that fail.

A run is a function of (scenario, nodes, seed): it draws its options from the seed, lets users work while faults
strike, heals everything, waits until all has settled, and lets an oracle outside of the nodes judge. `reproduce` names
the command that runs it again, bit for bit, on any machine.

Follow one run: `scenarios` names them → `options` draws fleet and faults → `world` builds nodes (`driver` performs the
core's effects on `disks`, `depot`, `network` and `streams`) → `clients` and `faults` strike → `oracle` listens all the
while → `verdict` looks at the end.
"""

from __future__ import annotations

from simulations.scenarios import SCENARIOS, Report, run

__all__ = ["SCENARIOS", "Report", "run"]
