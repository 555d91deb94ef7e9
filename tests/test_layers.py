"""The shape of the project: imports run downwards, the core is pure, one module knows each library, files are short.

Everything here reads the source with `ast`; nothing is imported, so that a deferred import is seen like any other.
"""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("protocol", "storage", "simulations", "node")
LINES_MAX = 500  # of a file: what a newcomer reads in one sitting
FUNCTION_LINES_MAX = 70  # of a function: what a screen shows at once

# What each package may import of ours. The command line alone reaches the simulator, for `spore simulate`.
BELOW = {
    "protocol": {"protocol"},
    "storage": {"storage", "protocol"},
    "simulations": {"simulations", "protocol"},
    "node": {"node", "storage", "protocol"},
    "node/cli": {"node", "storage", "protocol", "simulations"},
}

# The core decides and does nothing: what it may know of the world besides itself. (numpy: for sketches, in one module.)
PURE = {
    "__future__", "array", "collections", "collections.abc", "dataclasses", "enum", "fnmatch", "functools", "hashlib",
    "heapq", "itertools", "json", "math", "random", "re", "struct", "typing", "unicodedata", "zlib", "blake3", "numpy",
    "numpy.typing",
}  # fmt: skip

# Libraries that one module of ours knows, so that all others speak of our values.
ONLY = {
    "msgpack": "protocol/wire.py",
    "cryptography": "node/certificates.py",
    "yaml": "node/config.py",
    "prometheus_client": "node/metrics.py",
    "pydantic": "node/config_schema.py",
    "asyncinotify": "node/watches.py",
    "cronsim": "node/schedules.py",
}


def sources(package: str = "") -> list[Path]:
    folders = [package] if package else list(PACKAGES)
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, anywhere in it, with the line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{place(path)}:{node.lineno} imports relatively"
            yield node.module or "", node.lineno


def modules() -> list[str]:
    return [place(path) for path in sources()]


# --- layers ---


def layer(path: str) -> set[str]:
    return BELOW["node/cli"] if path.startswith("node/cli/") else BELOW[path.partition("/")[0]]


@pytest.mark.parametrize("path", modules())
def test_imports_run_downwards(path: str) -> None:
    upwards = [
        f"{path}:{line} imports {name}"
        for name, line in imports(ROOT / path)
        if name.partition(".")[0] in PACKAGES and name.partition(".")[0] not in layer(path)
    ]
    assert upwards == []


def test_nothing_of_ours_imports_the_tests() -> None:
    assert [place(path) for path in sources() for name, _ in imports(path) if name.partition(".")[0] == "tests"] == []


@pytest.mark.parametrize("library", sorted(ONLY))
def test_one_module_knows_each_library(library: str) -> None:
    knowing = {place(path) for path in sources() for name, _ in imports(path) if name.partition(".")[0] == library}
    assert knowing == {ONLY[library]}


def test_at_most_one_module_knows_psutil() -> None:
    knowing = {place(path) for path in sources() for name, _ in imports(path) if name.partition(".")[0] == "psutil"}
    assert len(knowing) <= 1


# --- purity of the core ---


@pytest.mark.parametrize("path", [place(path) for path in sources("protocol")])
def test_the_core_knows_nothing_of_the_world(path: str) -> None:
    foreign = [
        f"{path}:{line} imports {name}"
        for name, line in imports(ROOT / path)
        if name.partition(".")[0] != "protocol" and name not in PURE and ONLY.get(name) != path
    ]
    assert foreign == []


def test_what_the_core_may_import_is_the_standard_library_but_for_the_hash_and_numpy() -> None:
    foreign = {name.partition(".")[0] for name in PURE} - {*sys.stdlib_module_names}
    assert foreign == {"blake3", "numpy"}
    assert not PURE & {
        "time",
        "datetime",
        "uuid",
        "secrets",
        "os",
        "sys",
        "io",
        "pathlib",
        "socket",
        "asyncio",
        "threading",
    }


def test_one_module_of_the_core_knows_numpy_and_loads_it_late() -> None:
    knowing = {place(path) for path in sources("protocol") for name, _ in imports(path) if name.startswith("numpy")}
    assert knowing == {"protocol/sketch_batches.py"}
    at_once = [node for node in tree(ROOT / "protocol/sketch_batches.py").body if isinstance(node, ast.Import)]
    assert at_once == []


@pytest.mark.parametrize("path", [place(path) for path in sources("protocol")])
def test_chance_is_handed_to_the_core(path: str) -> None:
    """`Random` is a type there: nobody makes one, and nobody uses the module's own."""
    module = tree(ROOT / path)
    imported = [
        alias.name
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and node.module == "random"
        for alias in node.names
    ]
    assert set(imported) <= {"Random"}
    assert "random" not in [
        alias.name for node in ast.walk(module) if isinstance(node, ast.Import) for alias in node.names
    ]
    assert "Random" not in called(module)


@pytest.mark.parametrize("path", [place(path) for path in sources("protocol")])
def test_the_core_calls_nothing_that_differs_from_run_to_run(path: str) -> None:
    assert not called(tree(ROOT / path)) & {
        "hash",
        "id",
        "open",
        "input",
        "print",
        "exec",
        "eval",
        "__import__",
        "vars",
    }


def called(module: ast.Module) -> set[str]:
    return {node.func.id for node in ast.walk(module) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


# --- sets have no order that is the same in two runs ---

ORDERLESS = {"sorted", "set", "frozenset", "len", "any", "all", "min", "max", "sum", "bool"}  # the order does not show
SET_METHODS = {"union", "intersection", "difference", "symmetric_difference"}
ORDERING = {"list", "tuple", "iter", "enumerate", "next", "zip", "map", "filter", "dict", "extend", "join", "update"}


class SetOrder(ast.NodeVisitor):
    """Finds where the order of a set shows: loops over one, lists made of one. It goes by names and annotations."""

    def __init__(self, module: ast.Module) -> None:
        self.found: list[int] = []
        self.names = {name for node in ast.walk(module) for name in self._named_sets(node)}
        self.visit(module)

    def _named_sets(self, node: ast.AST) -> list[str]:
        """Variables, attributes and functions that are declared or made as sets."""
        if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation is not None and _says_set(node.annotation):
            return [node.arg] if isinstance(node, ast.arg) else _names_of(node.target)
        if isinstance(node, ast.FunctionDef) and node.returns is not None and _says_set(node.returns):
            return [node.name]
        if isinstance(node, ast.Assign) and _makes_set(node.value):
            return [name for target in node.targets for name in _names_of(target)]
        return []

    def is_set(self, node: ast.expr) -> bool:
        if _makes_set(node):
            return True
        if isinstance(node, ast.BinOp):
            return self.is_set(node.left) or self.is_set(node.right)
        if isinstance(node, ast.Call):
            return self.is_set(node.func)
        return bool({*_names_of(node)} & self.names)

    def visit_For(self, node: ast.For) -> None:
        self._look(node.iter)
        self.generic_visit(node)

    def visit_ListComp(self, node: ast.ListComp) -> None:
        self._look(*(generator.iter for generator in node.generators))
        self.generic_visit(node)

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._look(*(generator.iter for generator in node.generators))
        self.generic_visit(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> None:
        self._look(*(generator.iter for generator in node.generators))
        self.generic_visit(node)

    def visit_Starred(self, node: ast.Starred) -> None:
        self._look(node.value)
        self.generic_visit(node)

    def visit_Set(self, node: ast.Set) -> None:
        for element in node.elts:  # what is unpacked into a set has no order to show
            self.visit(element.value if isinstance(element, ast.Starred) else element)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in ORDERLESS:
            for argument in node.args:  # a generator here is consumed without its order showing
                for part in argument.generators if isinstance(argument, ast.GeneratorExp) else ():
                    self.visit(part.iter)
                if not isinstance(argument, ast.GeneratorExp):
                    self.visit(argument)
            return
        if name in ORDERING and not (isinstance(node.func, ast.Attribute) and self.is_set(node.func.value)):
            self._look(*node.args)
        self.generic_visit(node)

    def _look(self, *iterated: ast.expr) -> None:
        self.found += [node.lineno for node in iterated if self.is_set(node)]


def _says_set(annotation: ast.expr) -> bool:
    outer = annotation.value if isinstance(annotation, ast.Subscript) else annotation
    return isinstance(outer, ast.Name) and outer.id in ("set", "frozenset", "AbstractSet", "Set")


def _makes_set(node: ast.expr) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    if isinstance(node, ast.BinOp):
        return _makes_set(node.left) or _makes_set(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in ("set", "frozenset")
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SET_METHODS


def _names_of(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [node.attr]
    return [node.id] if isinstance(node, ast.Name) else []


@pytest.mark.parametrize("path", [place(path) for path in sources("protocol")])
def test_the_order_of_no_set_reaches_an_effect(path: str) -> None:
    assert [f"{path}:{line}" for line in SetOrder(tree(ROOT / path)).found] == []


@pytest.mark.parametrize(
    "line",
    [
        "for x in {1, 2}: pass",
        "for x in set(y): pass",
        "for x in a & frozenset(b): pass",
        "[x for x in {*a}]",
        "tuple(x for x in set(a))",
        "list(set(a))",
        "out.extend({a, b})",
        "', '.join(set(a))",
        "[*set(a)]",
        "def f(a: set[int]):\n    for x in a: pass",
        "class A:\n    asked: set[int]\n    def f(self):\n        return list(self.asked)",
        "def f() -> frozenset[int]: ...\nfor x in f(): pass",
        "left = {1} | a\nfor x in left: pass",
        "{x: 1 for x in set(a)}",
        "for x in a.union(b): pass",
    ],
)
def test_the_check_of_sets_sees_their_order(line: str) -> None:
    assert SetOrder(ast.parse(line)).found


@pytest.mark.parametrize(
    "line",
    [
        "for x in sorted({1, 2}): pass",
        "sorted(x for x in set(a))",
        "any(x for x in {1, 2})",
        "len({1, 2})",
        "1 in {1, 2}",
        "{x for x in {1, 2}}",
        "{*a, *set(b)}",
        "a = {1}\na.update({2})",
        "for x in [1, 2]: pass",
        "min({a, b})",
    ],
)
def test_the_check_of_sets_leaves_alone_what_shows_no_order(line: str) -> None:
    assert SetOrder(ast.parse(line)).found == []


# --- style as a test ---


@pytest.mark.parametrize("path", modules())
def test_a_file_can_be_read_in_one_sitting(path: str) -> None:
    module = tree(ROOT / path)
    assert len((ROOT / path).read_text().splitlines()) <= LINES_MAX
    long = [
        f"{path}:{node.lineno} {node.name}"
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert long == []


@pytest.mark.parametrize("path", modules())
def test_a_module_opens_with_what_it_is_for(path: str) -> None:
    module = tree(ROOT / path)
    assert ast.get_docstring(module) or not module.body


@pytest.mark.parametrize("path", modules())
def test_nothing_is_left_for_later(path: str) -> None:
    text = (ROOT / path).read_text()
    assert not re.search(r"\bTODO\b|\bFIXME\b|\bXXX\b|NotImplementedError", text)


def test_no_module_is_a_drawer() -> None:
    assert [path for path in modules() if re.search(r"(utils?|helpers?|misc|mgr|manager|common)\.py$", path)] == []


def shipped() -> list[str]:
    """Everything that a reader of the repository meets, but for binaries and what tools leave behind."""
    kinds = ("*.py", "*.md", "*.toml", "*.yaml", "*.yml", "*.sh", "Makefile", ".ci/run")
    folders = (*PACKAGES, "docs", "deploy", "tests", ".ci")
    paths = [path for kind in kinds for path in ROOT.glob(kind)]
    paths += [path for folder in folders for kind in kinds for path in (ROOT / folder).rglob(kind)]
    return sorted({place(path) for path in paths})


MACHINE_PATHS = re.compile(r"(?<![\w.<{}/-])/(?:work|root|mnt/data|Users/\w+)(?:/|\b)")


@pytest.mark.parametrize("path", shipped())
def test_no_file_knows_the_machine_it_was_written_on(path: str) -> None:
    lines = (ROOT / path).read_text().splitlines()
    home = [f"{path}:{at}: {line.strip()[:80]}" for at, line in enumerate(lines, 1) if MACHINE_PATHS.search(line)]
    assert home == [] or path == "tests/test_layers.py"
