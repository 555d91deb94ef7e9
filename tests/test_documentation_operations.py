"""The page of operations and the fleet test are one: every playbook line on the page is run there, word for word."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "operations.md").read_text()
SEQUENCE = ast.parse((ROOT / "tests" / "fleet" / "sequence.py").read_text())
PLAYBOOKS = ROOT / "deploy" / "ansible"


def printed() -> list[tuple[str, ...]]:
    """The playbook and the words after it, of every line that the page tells to run."""
    lines = re.findall(r"^\$ ansible-playbook -i distributed_hosts.yaml (.+)$", PAGE, re.MULTILINE)
    return [tuple(line.split()) for line in lines]


def played() -> set[tuple[str, ...]]:
    """The words of every `fleet.play(…)` in the sequence."""
    calls = [node for node in ast.walk(SEQUENCE) if isinstance(node, ast.Call)]
    plays = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "play"]
    return {tuple(ast.literal_eval(word) for word in play.args) for play in plays}


def test_every_playbook_line_of_the_page_is_run_on_the_test_fleet() -> None:
    assert len(printed()) >= 10
    assert [line for line in printed() if line not in played()] == []


def test_every_playbook_is_on_the_page() -> None:
    named = {line[0] for line in printed()}
    assert named == {path.name for path in PLAYBOOKS.glob("*.yml")}


def test_every_make_target_on_the_page_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", PAGE)) <= targets


def test_every_setting_of_the_role_has_a_default_and_a_description() -> None:
    import yaml

    role = PLAYBOOKS / "roles" / "spore_agent"
    defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text())
    options = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert set(defaults) == set(options)
    assert [name for name, option in options.items() if not option["description"]] == []
