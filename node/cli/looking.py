"""Commands that look: ls, where, status, peers, risk, events."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from node.cli.client import Client
from node.cli.options import folder_option, json_option
from node.cli.output import (
    counted,
    in_bytes,
    in_time,
    plain,
    print_json,
    print_json_rows,
    print_table,
    short,
    yes,
)


@click.command()
@click.argument("glob", required=False)
@folder_option
@json_option
def ls(glob: str | None, directory: Path, as_json: bool) -> None:
    """List artifacts.

    All, or those whose names match GLOB (quote it: 'model/*').
    """
    with Client(directory) as client:
        rows = client.rows("ls", glob=glob)
        if as_json:
            print_json_rows(rows)
            return
        cells = [
            (r["name"], in_bytes(r["size"]), r["copies"], r["state"], r["origin"], short(r["digest"])) for r in rows
        ]
    print_table(["name", "size", "copies", "state", "origin", "digest"], cells, right=["size", "copies"])


@click.command()
@click.argument("name")
@click.option("--transfers", is_flag=True, help="Also by which ways it was lately fetched, and why those.")
@folder_option
@json_option
def where(name: str, transfers: bool, directory: Path, as_json: bool) -> None:
    """Who holds an artifact, and whether it is durable."""
    with Client(directory) as client:
        facts = client.ask("where", name=name)
    if as_json:
        print_json(facts)
        return
    safe = "durable" if facts["durable"] else "not durable yet"
    print(f"{plain(facts['name'])}  {in_bytes(facts['size'])}, {_copies(facts['copies'])}, {safe}")
    print(f"digest {facts['digest']}")
    rows = [(h["node"], short(h["store"]), h["domain"], h["state"], _ago(h["verified_at"])) for h in facts["holders"]]
    print_table(["node", "store", "domain", "state", "verified"], rows)
    if transfers:
        print()
        _print_choices(facts["transfers"])


def _print_choices(choices: list[dict[str, Any]]) -> None:
    if not choices:
        print("no transfer of it lately, as far as this node knows")
        return
    rows = [(c["direction"], ", ".join(c["peers"]), c["transport"], c["why"], c["outcome"]) for c in choices]
    print_table(["transfer", "peers", "by", "because", "outcome"], rows)


@click.command()
@click.option("--cluster", is_flag=True, help="Show every member too.")
@folder_option
@json_option
def status(cluster: bool, directory: Path, as_json: bool) -> None:
    """What this node holds, what is at risk, its disk."""
    with Client(directory) as client:
        facts = client.ask("status", cluster=cluster)
    if as_json:
        print_json(facts)
        return
    _print_status(facts)
    if cluster:
        print()
        if "cluster_totals" in facts:
            _print_totals(facts["cluster_totals"])
            print()
        _print_peers(facts.get("cluster_members", []))


def _print_totals(totals: dict[str, Any]) -> None:
    disks = f"{in_bytes(totals['used_bytes'])} of {in_bytes(totals['capacity_bytes'])} used"
    print(f"cluster  {totals['alive']} of {totals['known']} nodes, {totals['stores']} stores, {disks}")
    risk = {"artifacts": totals["at_risk_artifacts"], "bytes": totals["at_risk_bytes"]}
    print(f"at risk  {_amount(risk)} on all nodes; {totals['repair_waiting']} wait for repair by this one")
    if totals["hosts_files"] > 1:
        print(f"files    {totals['hosts_files']} hosts files are in force: nothing is given up until they agree")


def _print_status(facts: dict[str, Any]) -> None:
    disk, members, risk_facts = facts["disk"], facts["members"], facts["at_risk"]
    traits = [facts["role"], *(trait for trait in ("ephemeral", "excluded") if facts.get(trait))]
    hint = "  (see `spore risk`)" if risk_facts["artifacts"] else ""
    print(f"{facts['node']} of {facts['cluster']}: {plain(', '.join(traits))}, up {in_time(facts['uptime_seconds'])}")
    print(f"held     {_amount(facts)}")
    print(f"at risk  {_amount(risk_facts)}{hint}")
    if facts.get("survival", {}).get("lost_artifacts"):
        print(f"         if this node died now you would lose {_loss(risk_facts, facts['survival'])}")
    if facts.get("ephemeral") and facts.get("ephemeral_by"):
        print(f"can go   {plain(facts['ephemeral_by'])}")
    for coming in facts.get("notices", {}).get("coming", ()):
        print(f"notice   {plain(coming['why'])}")
    print(
        f"disk     {disk['used_percent']:g}% used, accepts for others up to {disk['cap_percent']:g}%: "
        f"{'accepting' if disk['accepting'] else 'full, still sending'}"
    )
    print(f"members  {members['alive']} alive, {members['suspect']} suspect, {members['down']} down")
    if not facts.get("healthy", True):
        print("health   the disk failed a write: nothing new is accepted; see the agent's log")
    for name, why in sorted(facts.get("transports", {}).items()):
        if why:
            print(f"without  {name}: {plain(why)}")
    waits = facts.get("wal", {}).get("waits_seconds", 0)
    if waits:
        print(f"log      full: what is new has waited {in_time(waits)} for room; `spore risk` says what keeps it")
    if facts.get("not_running"):
        print(f"health   ended and not running any more: {plain(', '.join(facts['not_running']))}; restart the agent")
    if facts["kinds"]:
        print()
        rows = [(kind, held["artifacts"], in_bytes(held["bytes"])) for kind, held in sorted(facts["kinds"].items())]
        print_table(["kind", "artifacts", "size"], rows, right=["artifacts", "size"])
    moving = facts.get("transfers", [])
    if moving:
        print()
        _print_transfers(moving)
    broken = facts.get("breakers", [])
    if broken:
        print()
        _print_breakers(broken)


def _print_transfers(moving: list[dict[str, Any]]) -> None:
    rows = [
        (t["direction"], t["peer"], f"{in_bytes(t['bytes_done'])} of {in_bytes(t['bytes_total'])}", t["waits_for"])
        for t in moving
    ]
    print_table(["transfer", "peer", "moved", "waits for"], rows)


def _print_breakers(broken: list[dict[str, Any]]) -> None:
    rows = [
        (b["peer"], b["transport"], b["state"], b["failures"], f"{b['retry_seconds']:g} s", b["why"]) for b in broken
    ]
    print_table(["breaker of", "transport", "state", "failures", "next try in", "why"], rows, right=["failures"])


@click.command()
@folder_option
@json_option
def peers(directory: Path, as_json: bool) -> None:
    """The other nodes, as this one sees them."""
    with Client(directory) as client:
        rows = client.ask("peers")
    if as_json:
        print_json_rows(rows)
    else:
        _print_peers(rows)


def _print_peers(rows: list[dict[str, Any]]) -> None:
    headings = ["node", "state", "role", "provider", "domain", "address", "rtt ms", "accepting", "at risk"]
    cells = [
        (p["node"], p["state"], p["role"], p["provider"], p["domain"], p["address"], p["rtt_ms"], _accepts(p), _debt(p))
        for p in rows
    ]
    print_table(headings, cells, right=["rtt ms", "at risk"])
    if any(p.get("policy") == "differs" and p["state"] == "alive" for p in rows):
        names = ", ".join(p["node"] for p in rows if p.get("policy") == "differs" and p["state"] == "alive")
        print(f"another hosts file is in force on {plain(names)}")


def _debt(peer: dict[str, Any]) -> str | None:
    """What a node says it would lose if it died now."""
    return in_bytes(peer["at_risk_bytes"]) if peer.get("at_risk_bytes") else None


def _accepts(peer: dict[str, Any]) -> str | None:
    return yes(peer["accepting"]) if "accepting" in peer else None


@click.command()
@click.option("--cluster", is_flag=True, help="Of all nodes: what is held by nobody who is there, or by too few.")
@folder_option
@json_option
def risk(cluster: bool, directory: Path, as_json: bool) -> None:
    """What would be lost if this node died now, and why."""
    with Client(directory) as client:
        rows = client.ask("risk", cluster=cluster)
        survival = {} if cluster or as_json else client.ask("status").get("survival", {})
    if as_json:
        print_json_rows(rows)
        return
    if cluster:
        _print_cluster_risk(rows)
        return
    if not rows:
        print("nothing is at risk: all that was accepted here is durable on other nodes")
        return
    cells = [(r["name"], in_bytes(r["size"]), f"{r['copies']} of {r['needed']}", r["why"]) for r in rows]
    print_table(["name", "size", "receipts", "why"], cells, right=["size"])
    total = {"artifacts": len(rows), "bytes": sum(row["size"] for row in rows)}
    print(f"if this node died now you would lose {_loss(total, survival)}")


@click.command()
@click.option("--follow", is_flag=True, help="Go on with what happens next, until interrupted.")
@folder_option
@json_option
def events(follow: bool, directory: Path, as_json: bool) -> None:
    """What the agent reported lately: peers, refusals, losses."""
    with Client(directory) as client:
        rows = client.rows("events", follow=follow)
        if as_json and not follow:
            print_json_rows(rows)
            return
        for row in rows:
            when = time.strftime("%m-%d %H:%M:%S", time.localtime(row["at"]))
            sentence = f"{when}  {row['level']:7}  {plain(row['message'])}"
            print(json.dumps(row) if as_json else sentence, flush=True)


def _loss(total: dict[str, int], survival: dict[str, Any]) -> str:
    """What nobody else has, and what of it the notice could save; an older agent tells only what is not durable."""
    if not survival:
        return _amount(total)
    lost = {"artifacts": survival["lost_artifacts"], "bytes": survival["lost_bytes"]}
    saved = {"artifacts": survival["savable_artifacts"], "bytes": survival["savable_bytes"]}
    kinds = f" ({', '.join(survival['lost_kinds'])})" if survival["lost_kinds"] else ""
    notice = f"a notice of {survival['notice_seconds']:g} s could save" if survival["notice_seconds"] else "no notice:"
    return f"{_amount(lost)}{plain(kinds)}; {notice} {_amount(saved)}"


def _print_cluster_risk(rows: list[dict[str, Any]]) -> None:
    if not rows:
        print("nothing is at risk: every artifact of the cluster has its copies")
        return
    cells = [(r["name"], in_bytes(r["size"]), r["origin"], f"{r['copies']} of {r['needed']}", r["why"]) for r in rows]
    print_table(["name", "size", "origin", "copies", "why"], cells, right=["size"])
    lost = [row for row in rows if row["lost"]]
    total = {"artifacts": len(lost), "bytes": sum(row["size"] for row in lost)}
    print(f"{_amount(total)} held by nobody who is there, {counted(len(rows) - len(lost), 'artifact')} by too few")


def _amount(facts: dict[str, Any]) -> str:
    return f"{counted(facts['artifacts'], 'artifact')}, {in_bytes(facts['bytes'])}"


def _copies(count: int) -> str:
    return "1 copy" if count == 1 else f"{count} copies"


def _ago(stamp_ms: int | None) -> str | None:
    """How long ago a stamp in milliseconds since 1970 was."""
    return f"{in_time(max(0.0, time.time() - stamp_ms / 1000))} ago" if stamp_ms else None
