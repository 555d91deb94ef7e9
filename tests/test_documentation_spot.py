"""docs/spot.md: its budgets are those of the code, its variables exist, and its example of Python works as printed."""

import re
from pathlib import Path

import pytest

from node.notices import watching
from protocol.fleet import OTHER_FLUSH_SECONDS, PROVIDER_FLUSH_SECONDS, WITHOUT_NOTICE
from tests.agents import running

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "spot.md").read_text()


def provider_row(name: str) -> str:
    return next(line for line in PAGE.splitlines() if line.startswith("| ") and f"(`{name}`)" in line)


@pytest.mark.parametrize("provider", sorted(PROVIDER_FLUSH_SECONDS))
def test_each_provider_is_documented_with_its_budget(provider: str) -> None:
    assert re.search(rf"\b{PROVIDER_FLUSH_SECONDS[provider]:g} s\b", provider_row(provider))


def test_providers_without_a_notice_are_called_so_and_the_rest_has_its_budget() -> None:
    for provider in WITHOUT_NOTICE:
        assert "| none |" in provider_row(provider)
    assert f"else {OTHER_FLUSH_SECONDS:g} s" in PAGE


def test_the_variables_of_notices_are_all_there_and_no_other() -> None:
    known = {watching.METADATA_URL, watching.NOTICE_FILE, watching.NOTICE_COMMAND, watching.NOTICE_SECONDS}
    assert set(re.findall(r"^\| `(SPORE_\w+)` \|", PAGE, re.MULTILINE)) == known


def test_the_example_in_python_puts_durably_as_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    put_durably = names["put_durably"]
    assert callable(put_durably)
    with running() as fleet:
        monkeypatch.setenv("SPORE_DIR", str(fleet.nodes["a"].folder))
        assert put_durably(b"a game" * 1_000, "npz", "games-17.npz") >= 2
        facts = fleet.where("a", "npz/games-17.npz")
        assert facts is not None
        assert facts["durable"]
        with pytest.raises(RuntimeError, match="there is no kind 'fairy'"):
            put_durably(b"x", "fairy", "tale")
        done = fleet.spore("a", "put", __file__, "--kind", "npz", "--name", "x.npz", "--wait", "2", "--domains", "2")
        assert done.returncode == 0
        assert fleet.spore("a", "wait", "npz/x.npz", "--copies", "2", "--timeout", "60").returncode == 0
