"""What gets installed: every package, the command, the libraries that are imported; and nobody else owns the names."""

import ast
import re
import sys
import tomllib
from fnmatch import fnmatchcase
from importlib.metadata import distribution, entry_points, packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("node", "protocol", "simulations", "storage")
# The name under which a distribution is imported, where it is not its own in lower case with underscores.
IMPORTED_AS = {"pyyaml": "yaml"}
BROUGHT_ALONG = {"pydantic_core"}  # the other half of pydantic, which requires it in exactly its own version


def folders() -> list[str]:
    """Every folder of ours that holds Python, as a dotted name."""
    found = {path.parent.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    return sorted(folder.as_posix().replace("/", ".") for folder in found)


def test_the_packages_are_the_four() -> None:
    top = {folder.partition(".")[0] for folder in folders()}
    assert top == {*PACKAGES}
    include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert sorted(include) == [f"{package}*" for package in PACKAGES]


@pytest.mark.parametrize("folder", folders())
def test_every_folder_with_python_is_a_package_that_gets_installed(folder: str) -> None:
    """`packages.find` skips a folder without `__init__.py`, and all below it, without a word."""
    parts = folder.split(".")
    for depth in range(1, len(parts) + 1):
        assert (ROOT.joinpath(*parts[:depth]) / "__init__.py").is_file()
    include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert any(fnmatchcase(folder, pattern) for pattern in include)


def test_no_other_folder_would_be_taken_for_a_package_of_ours() -> None:
    """The patterns end in `*`: a folder `node_notes` with an `__init__.py` would be installed too."""
    include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    matching = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {name for name in matching if any(fnmatchcase(name, pattern) for pattern in include)} == {*PACKAGES}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_owns_our_names(package: str) -> None:
    """They are generic words; another distribution with one of them would replace ours, or be replaced."""
    assert set(packages_distributions()[package]) == {"spore-agent"}


def test_what_is_installed_is_this_source() -> None:
    assert distribution("spore-agent").version == PROJECT["project"]["version"]


def test_the_command_is_installed_and_can_be_called() -> None:
    (command,) = entry_points(group="console_scripts", name="spore")
    assert command.value == PROJECT["project"]["scripts"]["spore"] == "node.cli:main"
    assert callable(command.load())


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["project"]["version"]


def declared(requirements: list[str]) -> set[str]:
    names = {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower() for requirement in requirements}
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}


def imported() -> dict[str, str]:
    """Top-level modules that our packages import and that are neither ours nor Python's, each with one importer."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
                found.update({name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names})
    return {name: by for name, by in found.items() if name not in sys.stdlib_module_names and name not in PACKAGES}


def test_every_library_that_is_imported_is_declared() -> None:
    known = declared(PROJECT["project"]["dependencies"]) | BROUGHT_ALONG
    assert {name: by for name, by in imported().items() if name not in known} == {}


def test_every_requirement_has_a_lower_bound_and_no_upper_one() -> None:
    """An application in its own environment: what is newer is tried, what is older was never tested."""
    extras = [requirement for group in PROJECT["project"]["optional-dependencies"].values() for requirement in group]
    for requirement in [*PROJECT["project"]["dependencies"], *extras]:
        assert re.fullmatch(r"[A-Za-z0-9._-]+>=[0-9.]+(; .+)?", requirement), requirement


def test_the_licence_and_the_read_me_that_the_metadata_names_are_there() -> None:
    named = [PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]]
    assert [name for name in named if not (ROOT / name).is_file()] == []
