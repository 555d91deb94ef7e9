"""The picture of a run: well-formed, labelled with units, readable in light and dark, made by the command it names."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from node.cli.commands import spore
from simulations import Case, run_sampled
from simulations.plot import draw
from simulations.samples import theory
from simulations.svg import LEFT, RIGHT, WIDTH, Curve, Panel, picture

SVG = "{http://www.w3.org/2000/svg}"
PANEL = Panel("Copies", "seconds", "stores", (Curve("mean", ((0, 0), (5, 2), (10, 4)), "a"),), 4, marks=((5, "cut"),))


def drawn(case: Case) -> ElementTree.Element:
    report, samples = run_sampled(case)
    return ElementTree.fromstring(draw(samples, report.reproduce, "PASSED"))


def words(svg: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in svg.iter(f"{SVG}text")]


def points(line: ElementTree.Element) -> list[tuple[float, float]]:
    pairs = [pair.split(",") for pair in line.attrib["points"].split()]
    return [(float(x), float(y)) for x, y in pairs]


def test_a_run_is_drawn_as_three_panels_with_units_and_its_command() -> None:
    svg = drawn(Case("convergence", nodes=4))
    said = words(svg)
    assert "spore simulate convergence --nodes 4 --seed 1" in said
    for label in ("milliseconds since its first commit", "% of nodes", "seconds", "stores", "KiB/s"):
        assert label in said
    for curve in ("measured", "doubling each hop", "mean", "wanted", "fewest", "sent"):
        assert curve in said


def test_the_same_run_gives_the_same_picture() -> None:
    case = Case("convergence", nodes=3, seed=2)
    assert ElementTree.tostring(drawn(case)) == ElementTree.tostring(drawn(case))


def test_nothing_is_drawn_outside_of_the_page() -> None:
    svg = drawn(Case("partition", seed=2))
    _, _, width, height = (float(part) for part in svg.attrib["viewBox"].split())
    lines = [pair for line in svg.iter(f"{SVG}polyline") for pair in points(line)]
    assert lines
    assert all(LEFT <= x <= WIDTH - RIGHT and 0 < y < height for x, y in lines)
    assert all(0 <= float(text.attrib["x"]) < width for text in svg.iter(f"{SVG}text"))
    assert "healed" in words(svg)


def test_the_style_serves_light_and_dark_pages() -> None:
    style = next(ElementTree.fromstring(picture("t", "c", (PANEL,))).iter(f"{SVG}style")).text or ""
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    for look in (".page", "text", ".grid", ".axis", ".a ", ".b "):
        assert look in light
        assert look in dark


def test_values_lie_where_the_axes_say() -> None:
    svg = ElementTree.fromstring(picture("t", "c", (PANEL,)))
    curve = next(line for line in svg.iter(f"{SVG}polyline") if "line" in line.attrib["class"])
    (x0, y0), (x5, y2), (x10, y4) = points(curve)
    assert (x0, x10) == (LEFT, WIDTH - RIGHT)
    assert x5 == pytest.approx((x0 + x10) / 2, abs=0.1)
    assert y2 == pytest.approx((y0 + y4) / 2, abs=0.1)
    assert y4 < y0
    assert {"0", "2", "4", "10"} <= set(words(svg))


def test_a_logarithmic_axis_has_a_tick_for_each_power_of_ten() -> None:
    panel = Panel("Age", "ms", "%", (Curve("known", ((1, 0), (10, 50), (1000, 100)), "a"),), 100, log=True)
    svg = ElementTree.fromstring(picture("t", "c", (panel,)))
    assert {"1", "10", "100", "1000"} <= set(words(svg))
    curve = next(line for line in svg.iter(f"{SVG}polyline") if "line" in line.attrib["class"])
    x1, x10, x1000 = (x for x, _ in points(curve))
    assert x10 - x1 == pytest.approx((x1000 - x1) / 3, abs=0.2)


def test_a_long_command_is_broken_into_lines_and_its_signs_are_escaped() -> None:
    command = "spore simulate --partition 'a*|<b>:1-2' " + " ".join(f"--kill 'host-{i}:10'" for i in range(20))
    svg = ElementTree.fromstring(picture("t", command, (PANEL,)))
    lines = [text.text or "" for text in svg.iter(f"{SVG}text") if text.attrib.get("class") == "code"]
    assert len(lines) > 2
    assert " ".join(lines) == command


@pytest.mark.parametrize(("nodes", "hops"), [(1, 0), (2, 1), (100, 7), (1024, 10)])
def test_theory_doubles_each_hop_until_all_know(nodes: int, hops: int) -> None:
    ideal = theory(nodes, 50.0)
    assert ideal[-1] == (hops * 50.0, 1.0)
    assert [share for _, share in ideal] == sorted(share for _, share in ideal)


def test_the_command_writes_the_file_and_the_file_names_the_command(tmp_path: Path) -> None:
    target = tmp_path / "run.svg"
    done = CliRunner().invoke(spore, ["simulate", "convergence", "--nodes", "3", "--plot", str(target)])
    assert done.exit_code == 0
    said = " ".join(words(ElementTree.parse(target).getroot()))
    assert f"--plot {target}" in said
    assert re.search(r"PASSED: of \d+ accepted artifacts none was lost \(3 nodes\)", said)


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    words = ["simulate", "convergence", "--nodes", "3", "--plot", str(tmp_path / "no" / "run.svg")]
    done = CliRunner().invoke(spore, words)
    assert done.exit_code != 0
    assert "cannot be written" in done.stderr


def test_the_page_that_shows_a_rehearsal_uses_options_that_exist_and_a_picture_of_one_of_its_commands() -> None:
    docs = Path(__file__).parent.parent / "docs"
    page = (docs / "simulation.md").read_text()
    commands = re.findall(r"^\$ (spore simulate .*)$", page, re.MULTILINE)
    known = {name for option in spore.commands["simulate"].params for name in option.opts}
    assert len(commands) > 3
    assert {word for line in commands for word in line.split() if word.startswith("--")} <= known
    drawn = ElementTree.parse(docs / "images" / "rehearsal.svg").getroot()
    said = (drawn.findtext(f"{SVG}title") or "").replace("simulate rehearsal ", "simulate ").replace("--seed 1 ", "")
    assert said in commands
