"""The picture in docs/policy.md: who gets what in the example fleet, drawn from the plan itself.

`python -m tests.policy_picture` draws it anew; a test sees that it is up to date.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from node.config import load_fleet
from protocol.chunks import digest_of
from protocol.fleet import Fleet, Kind
from protocol.planning import Plan, candidates_of, hypothetical, plan

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs/images/placement.svg"
EXAMPLES = (  # a name of each kind, and who writes it
    ("game/vultr-sp-1/games/a.db", "vultr-sp-1"),
    ("model/models/best.pth", "nebius-h100-1"),
    ("npz/training/set.npz", "nebius-h100-1"),
    ("checkpoint/checkpoints/step-9", "gh200-a"),
)
LEFT, TOP, WIDTH, HEIGHT = 200, 84, 172, 34
COLOURS = {"wrote it": "#4c72b0", "makes it durable": "#55a868", "its role wants it": "#c9e4ca", "not": "#f4f4f4"}
TEXT = {"wrote it": "#ffffff", "makes it durable": "#ffffff", "its role wants it": "#1b4332", "not": "#9a9a9a"}


def draw() -> str:
    fleet = load_fleet(ROOT / "distributed_hosts.yaml")
    nodes = sorted(fleet.hosts, key=lambda node: (fleet.host(node).role, node))
    plans = [_plan(fleet, name, origin) for name, origin in EXAMPLES]
    width, height = LEFT + WIDTH * len(EXAMPLES) + 10, TOP + HEIGHT * len(nodes) + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<text x="10" y="22" font-size="15" font-weight="bold">Who gets what in the example fleet</text>',
    ]
    for column, (name, origin) in enumerate(EXAMPLES):
        x = LEFT + WIDTH * column
        kind = name.partition("/")[0]
        parts.append(f'<text x="{x + 6}" y="50" font-weight="bold">{escape(kind)}: {_policy(fleet, kind)}</text>')
        parts.append(f'<text x="{x + 6}" y="68" fill="#666666">written on {escape(origin)}</text>')
    for row, node in enumerate(nodes):
        parts += _row(fleet, node, TOP + HEIGHT * row, plans)
    parts += _legend(TOP + HEIGHT * len(nodes) + 14)
    return "\n".join([*parts, "</svg>", ""])


def _policy(fleet: Fleet, name: str) -> str:
    kind = fleet.kind(name)
    assert kind is not None
    return f"{kind.strategy} {', '.join(kind.roles)}".strip()


def _plan(fleet: Fleet, name: str, origin: str) -> Plan:
    kind = fleet.kind_of(name)
    assert isinstance(kind, Kind)
    members = hypothetical(fleet)
    store = next(member.store for member in members if member.node == origin)
    group = candidates_of(fleet, members, kind.name)
    return plan(digest_of(name.encode())[0], kind, fleet.min_copies(kind, origin), group, origin, store)


def _row(fleet: Fleet, node: str, y: int, plans: list[Plan]) -> list[str]:
    host = fleet.host(node)
    traits = [host.role, *(["can vanish"] if host.ephemeral else []), *(["excluded"] if host.excluded else [])]
    parts = [
        f'<text x="10" y="{y + 15}" font-weight="bold">{escape(node)}</text>',
        f'<text x="10" y="{y + 29}" font-size="10" fill="#666666">{escape(", ".join(traits))}</text>',
    ]
    for column, (made, (_, origin)) in enumerate(zip(plans, EXAMPLES, strict=True)):
        what, words = _cell(made, node, origin)
        x = LEFT + WIDTH * column
        parts.append(
            f'<rect x="{x}" y="{y}" width="{WIDTH - 4}" height="{HEIGHT - 4}" rx="4" fill="{COLOURS[what]}"/>'
            f'<text x="{x + 8}" y="{y + 19}" font-size="11" fill="{TEXT[what]}">{escape(words)}</text>'
        )
    return parts


def _cell(made: Plan, node: str, origin: str) -> tuple[str, str]:
    for holder in made.holders:
        if holder.node == node:
            what = "wrote it" if node == origin else "makes it durable" if holder.counts else "its role wants it"
            return what, what
    why = next(other.why for other in made.others if other.node == node)
    short = {"it shares": "shares its mate's store", "it can vanish": "can vanish", "it is excluded": "excluded"}
    return "not", next((words for begin, words in short.items() if why.startswith(begin)), "others come before it")


def _legend(y: int) -> list[str]:
    parts = []
    for index, (what, colour) in enumerate(COLOURS.items()):
        x = LEFT + index * WIDTH
        parts.append(f'<rect x="{x}" y="{y}" width="14" height="14" rx="3" fill="{colour}" stroke="#cccccc"/>')
        parts.append(f'<text x="{x + 20}" y="{y + 12}">{escape(what if what != "not" else "no copy, and why")}</text>')
    return parts


if __name__ == "__main__":
    PICTURE.write_text(draw())
