"""Configuration: `distributed_hosts.yaml` and the environment, read, checked and explained. The one module that
knows YAML.

It needs PyYAML and pydantic alone, so that an Ansible inventory and the simulator can import it. Text becomes a tree
whose every path has a line; models check the values, cross-checks the contradictions; the result is a
`protocol.fleet.Fleet`, or a `ConfigError` with every problem at once.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

import yaml

from node.config_checks import build_fleet, routing_stated
from node.config_problems import BadValueError, ConfigError, Findings, Path, Problem, shown
from node.config_schema import ENVIRONMENT, HOST_ENVIRONMENT, HostSettings, SharedSettings, read_section, stated
from node.config_starter import starter_text
from node.config_values import read_address, read_cluster, read_node
from protocol.fleet import Fleet, Host, Routing

__all__ = [
    "ConfigError",
    "Inspection",
    "Problem",
    "apply_environment",
    "apply_host_environment",
    "check_report",
    "inspect_file",
    "inspect_fleet",
    "load_fleet",
    "parse_fleet",
    "starter_hosts_file",
]

HOSTS_FILE_NAME = "distributed_hosts.yaml"
FILE_BYTES_MAX = 1 << 20  # ten thousand hosts with six settings each
DEPTH_MAX = 12  # the deepest setting lies five levels down
NULL_TAG = "tag:yaml.org,2002:null"
PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("null", "str", "int", "float", "bool", "timestamp", "value", "map", "seq")
)


@dataclass(frozen=True, slots=True)
class Inspection:
    """All that can be said about one hosts file. `fleet` is None exactly if there are errors."""

    filename: str
    fleet: Fleet | None
    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]

    def report(self) -> str:
        """The findings for people, a line each, and a last line that says whether the file can be used."""
        lines = [f"error: {problem.sentence(self.filename)}" for problem in self.errors]
        lines += [f"warning: {problem.sentence(self.filename)}" for problem in self.warnings]
        return "\n".join([*lines, self._verdict()])

    def _verdict(self) -> str:
        if self.fleet is None:
            return f"{self.filename}: {len(self.errors)} error{'s' if len(self.errors) != 1 else ''}; not usable."
        hosts, kinds = len(self.fleet.hosts), len(self.fleet.kinds)
        counts = f"{hosts} host{'s' if hosts != 1 else ''}, {kinds} kinds"
        return f"{self.filename}: usable. Cluster {self.fleet.cluster}, {counts}, hash {self.fleet.hash[:12]}."


def load_fleet(path: str | os.PathLike[str]) -> Fleet:
    """The fleet of a hosts file, or of the one in a node's folder. Raises ConfigError with every problem."""
    return _usable(inspect_file(path))


def parse_fleet(text: str | bytes, filename: str = HOSTS_FILE_NAME) -> Fleet:
    """The fleet that a text describes. Raises ConfigError with every problem."""
    return _usable(inspect_fleet(text, filename))


def check_report(path: str | os.PathLike[str]) -> str:
    """What `spore check` prints about a hosts file or a node's folder: every finding, then the verdict."""
    return inspect_file(path).report()


def inspect_file(path: str | os.PathLike[str]) -> Inspection:
    """Errors and warnings of a hosts file, or of the one in a node's folder. Raises nothing."""
    place = FilePath(path)
    try:
        place = place / HOSTS_FILE_NAME if place.is_dir() else place
        if place.exists() and not place.is_file():
            return _refusal(str(place), "it is no regular file", "Name a hosts file or a node's folder.")
        with place.open("rb") as stream:
            content = stream.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        cause = error.strerror if isinstance(error, OSError) and error.strerror else "its name is invalid"
        return _refusal(str(place), f"it cannot be read: {cause}", "Name a hosts file or a node's folder.")
    return inspect_fleet(content, str(place))


def inspect_fleet(text: str | bytes, filename: str = HOSTS_FILE_NAME) -> Inspection:
    """Errors and warnings of a text. Raises nothing."""
    findings = Findings()
    tree = _read_tree(text, findings)
    fleet = build_fleet(tree, findings) if tree is not None else None
    return Inspection(
        filename,
        fleet if not findings.errors else None,
        _in_file_order(findings.errors),
        _in_file_order(findings.warnings),
    )


def apply_environment(routing: Routing, env: Mapping[str, str]) -> Routing:
    """A node's routing with what its environment overrides. Raises ConfigError naming every bad variable.

    An empty variable is an unset one, as in unit files and containers that pass variables through.
    """
    names = {variable: key for variable, key in ENVIRONMENT.items() if env.get(variable, "").strip()}
    findings, raw = Findings(), Findings()
    settings = read_section(SharedSettings, {key: env[name].strip() for name, key in names.items()}, (), raw)
    for problem in raw.errors:
        variable = next(name for name, key in names.items() if key == problem.path)
        findings.error((variable,), problem.message, problem.suggestion, env[variable])
    if findings.errors:
        raise ConfigError(findings.errors, "environment")
    return replace(routing, **routing_stated(settings, (), Findings()))


def apply_host_environment(host: Host, env: Mapping[str, str]) -> Host:
    """A node's own entry with what its environment says of it. Raises ConfigError naming every bad variable."""
    names = {variable: key for variable, key in HOST_ENVIRONMENT.items() if env.get(variable, "").strip()}
    findings, raw = Findings(), Findings()
    settings = read_section(HostSettings, {key: env[name].strip() for name, key in names.items()}, (), raw)
    for problem in raw.errors:
        variable = next(name for name, key in names.items() if key == problem.path)
        findings.error((variable,), problem.message, problem.suggestion, env[variable])
    if findings.errors:
        raise ConfigError(findings.errors, "environment")
    told = stated(settings, Host)
    if "ephemeral" in told:
        told["ephemeral_by"] = "SPORE_EPHEMERAL"
    return replace(host, **told)


def starter_hosts_file(cluster: str, node: str, address: str, others: Mapping[str, str] | None = None) -> str:
    """The commented hosts file of a new cluster: its first node, and perhaps others (name → address).

    Raises ConfigError for names that cannot be used.
    """
    findings = Findings()
    more = dict(others or {})
    readers: list[tuple[str, Callable[[str], str], str]] = [
        ("cluster", read_cluster, cluster),
        ("node", read_node, node),
        ("address", read_address, address),
    ]
    for name, there in more.items():
        readers += [("host", read_node, name), ("host", read_address, there)]
    for what, read, text in readers:
        try:
            read(text)
        except BadValueError as error:
            findings.error((what,), error.message, error.suggestion, text)
    if findings.errors:
        raise ConfigError(findings.errors, "init")
    checked = {name: read_address(there) for name, there in more.items()}
    text = starter_text(cluster, node, read_address(address), checked)
    parse_fleet(text)  # one host twice, one address twice: the file says it best itself
    return text


def _usable(inspection: Inspection) -> Fleet:
    if inspection.fleet is None:
        raise ConfigError(inspection.errors, inspection.filename)
    return inspection.fleet


def _refusal(filename: str, message: str, suggestion: str) -> Inspection:
    return Inspection(filename, None, (Problem(0, "", "", message, suggestion),), ())


def _in_file_order(problems: list[Problem]) -> tuple[Problem, ...]:
    return tuple(sorted(problems, key=lambda problem: (problem.line, problem.path)))


class _RefusedError(Exception):
    """The shape of the file is refused. Raised while YAML is composed, so that a bomb is never unfolded."""

    def __init__(self, line: int, message: str, suggestion: str) -> None:
        super().__init__(message)
        self.line, self.message, self.suggestion = line, message, suggestion


class _Loader(yaml.SafeLoader):
    """Composes nodes, constructs nothing; refuses aliases (a bomb needs them) and nests to a fixed depth."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            raise _RefusedError(line, "aliases (*name) are not allowed", "Write the value out.")
        if self.depth >= DEPTH_MAX:
            raise _RefusedError(line, "it is nested too deeply", "Indent settings as the manual shows.")
        self.depth += 1
        node = super().compose_node(parent, index)  # type: ignore[arg-type]
        self.depth -= 1
        return node


def _read_tree(text: str | bytes, findings: Findings) -> dict[str, object] | None:
    """The file as nested dicts, lists and texts, with the line of every path in the findings; None if refused."""
    try:
        root = _compose(text)
        if root is None:
            raise _RefusedError(1, "it is empty", "Write at least cluster: and hosts:.")
        if not isinstance(root, yaml.MappingNode):
            raise _RefusedError(1, "it is no list of settings", "Begin with a line such as cluster: my-fleet.")
        lines: dict[Path, int] = {(): root.start_mark.line + 1}
        findings.lines = lines
        tree = _Tree(lines, findings).value(root, ())
    except _RefusedError as refusal:
        findings.lines = {(): refusal.line}
        findings.error((), refusal.message, refusal.suggestion)
        return None
    assert isinstance(tree, dict), "a mapping node becomes a dict"
    return tree


def _compose(text: str | bytes) -> yaml.Node | None:
    """The nodes of the only document. Raises _RefusedError for everything that is not one plain YAML document."""
    if len(text) > FILE_BYTES_MAX:
        raise _RefusedError(0, f"it is larger than {FILE_BYTES_MAX:,} bytes", "A hosts file never is.")
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        decoded.encode()  # a text with lone surrogates is as little UTF-8 as such bytes
    except UnicodeError:
        raise _RefusedError(0, "it is not UTF-8 text", "Save it as UTF-8.") from None
    try:
        return _Loader(decoded).get_single_node()
    except yaml.reader.ReaderError as error:
        line = decoded.count("\n", 0, error.position) + 1
        hint = "Remove it; an editor shows it as a box or not at all."
        raise _RefusedError(line, f"character #x{ord(decoded[error.position]):02x} is not allowed", hint) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = f"this is not YAML: {error.problem or error.context or 'it cannot be read'}"
        hint = "Compare indentation, colons and quotes with the lines around it."
        raise _RefusedError(mark.line + 1 if mark else 0, message, hint) from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        # PyYAML lets some of Python's own errors through, for instance of an escape such as "\U99999999".
        raise _RefusedError(0, "this is not YAML that can be read", "Look for escapes in quoted text.") from None


@dataclass(slots=True)
class _Tree:
    """Turns nodes into plain values and notes where they stand. Scalars stay text: see `node/config_values.py`."""

    lines: dict[Path, int]
    findings: Findings

    def value(self, node: yaml.Node, path: Path) -> object:
        """The value of one node; the path leads to it."""
        self.lines.setdefault(path, node.start_mark.line + 1)
        if node.tag not in PLAIN_TAGS:
            self.findings.error(path, f"the tag {shown(node.tag)} is not allowed", "Write a plain value.")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return None if node.tag == NULL_TAG else str(node.value)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, object]:
        found: dict[str, object] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.findings.error(path, "a key must be a single word", "Write `key: value`.", line=line)
                continue
            here = (*path, str(key_node.value))
            if key_node.value in found:
                self._duplicate(here, line)
                continue
            self.lines[here] = line
            found[str(key_node.value)] = self.value(value_node, here)
        return found

    def _duplicate(self, path: Path, line: int) -> None:
        """A second entry would silently win in other YAML readers; here the file is refused."""
        what = {"hosts": "host", "kinds": "kind"}.get(str(path[0]), "key") if len(path) == 2 else "key"
        first = f"The first is on line {self.lines[path]}; remove or rename one."
        self.findings.error(path, f"the {what} {shown(path[-1])} stands here twice", first, path[-1], line)
