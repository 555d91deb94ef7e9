"""Line charts as SVG, written by hand: titled panels below each other, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from textwrap import wrap
from xml.sax.saxutils import escape

WIDTH, PANEL, LEFT, RIGHT, TOP, GAP, LINE = 760, 150, 64, 150, 58, 62, 14  # pixels
COMMAND_CHARACTERS = 108  # of a line in the title's fixed-width letters
STYLE = """
  svg { font: 12px system-ui, sans-serif; }
  .page { fill: #ffffff; } text { fill: #333333; }
  .small { font-size: 11px; } .code { font: 11px ui-monospace, monospace; }
  .title { font-size: 14px; font-weight: 600; }
  .grid { stroke: #dddddd; } .axis { stroke: #888888; fill: none; } .mark { stroke: #999999; stroke-dasharray: 2 3; }
  .line { fill: none; stroke-width: 2; } .dash { stroke-dasharray: 6 4; }
  .a { stroke: #0b66c3; } .b { stroke: #c2540a; } .ta { fill: #0b66c3; } .tb { fill: #c2540a; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #16181c; } text { fill: #d6d9de; } .grid { stroke: #33373d; } .axis { stroke: #7a8089; }
    .a { stroke: #62aef7; } .b { stroke: #f29b55; } .ta { fill: #62aef7; } .tb { fill: #f29b55; }
  }
"""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a panel: `look` is a class of the style, a or b, perhaps dashed."""

    label: str
    points: Points
    look: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes. With `log` the horizontal axis is logarithmic; `marks` are (x, words)."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    y_max: float
    log: bool = False
    marks: tuple[tuple[float, str], ...] = ()


def picture(title: str, command: str, panels: Sequence[Panel]) -> str:
    """The whole file, one text; the same for the same panels."""
    lines = wrap(command, COMMAND_CHARACTERS, break_long_words=False, break_on_hyphens=False)
    top = TOP + LINE * (len(lines) - 1)
    height = top + len(panels) * (PANEL + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(command)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        _text("title", 16, 22, title),
        *(_text("code", 16, 40 + LINE * index, line) for index, line in enumerate(lines)),
    ]
    for index, panel in enumerate(panels):
        frame = Frame(panel, top + index * (PANEL + GAP) + 14)
        parts += [*_axes(panel, frame), *_marks(panel, frame), *_curves(panel, frame)]
    return "\n".join([*parts, "</svg>"]) + "\n"


class Frame:
    """Where the values of one panel lie on the page, in pixels."""

    def __init__(self, panel: Panel, top: int) -> None:
        self.top = top
        self.bottom = top + PANEL
        self.right = WIDTH - RIGHT
        self.log = panel.log
        self.y_max = panel.y_max
        values = [at for curve in panel.curves for at, _ in curve.points] or [1.0]
        self.low = 1.0 if panel.log else 0.0
        self.high = 10.0 ** ceil(log10(max(10.0, *values))) if panel.log else max(1.0, *values)

    def x(self, value: float) -> float:
        share = log10(value) / log10(self.high) if self.log else value / self.high
        return round(LEFT + share * (self.right - LEFT), 1)

    def y(self, value: float) -> float:
        return round(self.bottom - min(1.0, value / self.y_max) * PANEL, 1)

    def x_ticks(self) -> list[float]:
        return [10.0**power for power in range(round(log10(self.high)) + 1)] if self.log else _ticks(self.high)


def _axes(panel: Panel, frame: Frame) -> list[str]:
    parts = [_text("", LEFT, frame.top - 8, panel.title)]
    for tick in _ticks(panel.y_max):
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{frame.right}" y1="{y}" y2="{y}"/>')
        parts.append(_text("small", LEFT - 6, y + 4, f"{tick:g}", 'text-anchor="end"'))
    for tick in frame.x_ticks():
        x = frame.x(tick)
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{frame.bottom}" y2="{frame.bottom + 4}"/>')
        parts.append(_text("small", x, frame.bottom + 16, f"{tick:g}", 'text-anchor="middle"'))
    corner = f"{LEFT},{frame.top} {LEFT},{frame.bottom} {frame.right},{frame.bottom}"
    parts.append(f'<polyline class="axis" points="{corner}"/>')
    centre = frame.top + PANEL / 2
    turned = f'text-anchor="middle" transform="rotate(-90 16 {centre})"'
    parts.append(_text("small", 16, centre, panel.y_label, turned))
    parts.append(_text("small", (LEFT + frame.right) / 2, frame.bottom + 32, panel.x_label, 'text-anchor="middle"'))
    return parts


def _marks(panel: Panel, frame: Frame) -> list[str]:
    """Moments; the words of close ones stand on lines of their own."""
    parts = []
    for index, (at, words) in enumerate(panel.marks):
        x = frame.x(at)
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{frame.top}" y2="{frame.bottom}"/>')
        parts.append(_text("small", x + 3, frame.top + 10 + LINE * (index % 4), words))
    return parts


def _curves(panel: Panel, frame: Frame) -> list[str]:
    parts = []
    for index, curve in enumerate(panel.curves):
        pixels = " ".join(f"{frame.x(at)},{frame.y(value)}" for at, value in curve.points)
        parts.append(f'<polyline class="line {curve.look}" points="{pixels}"/>')
        y = frame.top + 14 + 18 * index
        key = f'x1="{frame.right + 8}" x2="{frame.right + 26}" y1="{y - 4}" y2="{y - 4}"'
        parts.append(f'<line class="line {curve.look}" {key}/>')
        parts.append(_text(f"t{curve.look[0]}", frame.right + 32, y, curve.label))
    return parts


def _text(look: str, x: float, y: float, words: str, more: str = "") -> str:
    shown = f' class="{look}"' if look else ""
    return f'<text{shown} x="{x:g}" y="{y:g}"{" " + more if more else ""}>{escape(words)}</text>'


def _ticks(highest: float) -> list[float]:
    """Round numbers from zero up to the highest: steps of 1, 2 or 5 of some power of ten, seven numbers at most."""
    power = floor(log10(highest))
    steps = [factor * 10.0**exponent for exponent in (power - 1, power, power + 1) for factor in (1, 2, 5)]
    step = next(step for step in steps if highest / step <= 6)
    return [step * index for index in range(int(highest / step + 1e-9) + 1)]
