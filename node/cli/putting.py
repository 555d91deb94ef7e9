"""`spore put`: files, many at once, or standard input."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.client import Client
from node.cli.failures import EXIT_USAGE, AgentRefused, CommandFailed
from node.cli.options import SECONDS, folder_option, json_option
from node.cli.output import LISTED_MAX, counted, in_bytes, in_time, print_json, print_table, short
from node.cli.pipeline import Pipeline, Tally, Terms
from node.cli.progress import Position, ProgressLine, watching
from node.cli.sources import Source

if TYPE_CHECKING:
    from protocol.fleet import Fleet

HOSTS_FILE = "distributed_hosts.yaml"


@click.command()
@click.argument("files", metavar="FILE…", nargs=-1, required=True)
@click.option("--kind", metavar="K", help="The kind (default: by the globs of the hosts file).")
@click.option("--name", metavar="N", help="The name below the kind (default: the file's name).")
@click.option("--wait", "copies", metavar="K", type=click.IntRange(min=0), default=0, help="Wait for K receipts.")
@click.option("--domains", metavar="D", type=click.IntRange(min=0), default=0, help="… over D failure domains.")
@click.option("--timeout", metavar="S", type=SECONDS, default=0.0, help="Give up waiting after S (default: never).")
@folder_option
@json_option
def put(
    files: tuple[str, ...],
    kind: str | None,
    name: str | None,
    copies: int,
    domains: int,
    timeout: float,
    directory: Path,
    as_json: bool,
) -> None:
    """Accept files and send them on their way.

    `-` is standard input. Done means: safe on this disk, in a place nobody else writes. With --wait: held by K other
    stores too.
    """
    if (domains or timeout) and not copies:
        raise CommandFailed("--domains and --timeout say how to wait; give --wait K with them", EXIT_USAGE)
    sources = _sources(files, kind, name, directory)
    started = time.monotonic()
    pipeline = _put_all(directory, Terms(copies, domains, timeout), sources)
    answers = [outcome for outcome in _in_order(pipeline) if isinstance(outcome, dict)]
    if as_json:
        print_json(answers if len(files) > 1 else answers[0]) if answers or len(files) > 1 else None
    else:
        _print(answers, time.monotonic() - started)
    _fail([(s, o) for s, o in zip(sources, _in_order(pipeline), strict=True) if isinstance(o, CommandFailed)])


def _in_order(pipeline: Pipeline) -> list[dict[str, Any] | CommandFailed]:
    return [pipeline.outcomes[index] for index in range(pipeline.tally.files)]


def _put_all(directory: Path, terms: Terms, sources: list[Source]) -> Pipeline:
    line = ProgressLine("put")
    display = _Display(terms, line)
    pipeline = Pipeline(directory, terms, sources, display.look)
    display.tally = pipeline.tally
    try:
        with watching(directory, line, display.ask):
            pipeline.run()
    finally:
        line.clear()
    return pipeline


class _Display:
    """The moving line: bytes while one file is read, files while there are many, copies and reasons while waiting."""

    def __init__(self, terms: Terms, line: ProgressLine) -> None:
        self._terms, self._line = terms, line
        self._why = ""
        self.tally = Tally(0)

    def look(self, tally: Tally) -> None:
        self._line.show(self._position(tally))

    def ask(self, client: Client) -> Position:
        """What the oldest unanswered put waits for; asked over a connection of its own."""
        source = self.tally.oldest
        if source is not None:
            self._why = self._ask_why(client, source)
        return self._position(self.tally)

    def _ask_why(self, client: Client, source: Source) -> str:
        status = client.ask("status")
        waits_seconds = status.get("wal", {}).get("waits_seconds", 0)
        if waits_seconds:
            return f"the agent's log is full: waiting {in_time(waits_seconds)} for other nodes to receive what is in it"
        if not self._terms.wait_copies:
            return ""
        for name in (f"{source.kind}/{source.name}", f"{source.kind}/{status['node']}/{source.name}"):
            try:
                facts = client.ask("progress", name=name)
            except AgentRefused:
                continue  # not accepted yet, or its kind has another form of name
            return f"{source.name}: {facts['copies']} of {self._terms.wait_copies} copies, {facts['why'] or 'waiting'}"
        return ""

    def _position(self, tally: Tally) -> Position:
        if tally.files == 1:
            return Position(tally.read_bytes, tally.total_bytes, why=self._why)
        return Position(tally.answered, tally.files, "files", self._why)


def _print(answers: list[dict[str, Any]], seconds: float) -> None:
    if 0 < len(answers) <= LISTED_MAX:
        rows = [(a["name"], in_bytes(a["size"]), a["copies"], short(a["digest"])) for a in answers]
        print_table(["name", "size", "copies", "digest"], rows, right=["size", "copies"])
    if len(answers) > LISTED_MAX:
        size = sum(answer["size"] for answer in answers)
        rate = len(answers) / seconds if seconds > 0 else 0
        print(f"{counted(len(answers), 'file')}, {in_bytes(size)}, in {in_time(seconds)} ({rate:,.0f} files/s)")


def _fail(failed: list[tuple[Source, CommandFailed]]) -> None:
    """Tell what failed, each once: ten thousand files may share one reason."""
    reasons: dict[str, list[Source]] = {}
    for source, problem in failed:
        reasons.setdefault(problem.sentence, []).append(source)
    sentences = []
    for sentence, sources in reasons.items():
        where = "" if str(sources[0]) in sentence else f"{sources[0]}: "
        others = f" (and so for {counted(len(sources) - 1, 'more file')})" if len(sources) > 1 else ""
        sentences.append(f"{where}{sentence}{others}")
    for sentence in sentences[:-1]:
        click.echo(f"spore: {sentence}", err=True)
    if sentences:
        raise CommandFailed(sentences[-1], max(problem.exit_code for _, problem in failed))


# --- which kind and name ---


def _sources(files: tuple[str, ...], kind: str | None, name: str | None, directory: Path) -> list[Source]:
    if name is not None and len(files) > 1:
        raise CommandFailed("--name names one file; put the files one at a time, or leave it out", EXIT_USAGE)
    if "-" in files and name is None:
        raise CommandFailed("standard input has no name; give one with --name", EXIT_USAGE)
    fleet = None if kind is not None else _fleet(directory)
    sources = []
    for file in files:
        path = None if file == "-" else Path(file)
        named = name if name is not None else Path(file).name
        sources.append(Source(path, kind or _kind_of(path or Path(named), fleet), named))
    _refuse_namesakes(sources)
    return sources


def _fleet(directory: Path) -> Fleet:
    from node.config import ConfigError, load_fleet

    try:
        return load_fleet(directory / HOSTS_FILE)
    except ConfigError as problem:
        first = str(problem).splitlines()[0]
        raise CommandFailed(f"the kinds cannot be read ({first}); say which with --kind", EXIT_USAGE) from problem


def _kind_of(path: Path, fleet: Fleet | None) -> str:
    """The first kind whose globs match the path, or its end: `/mnt/run7/models/best.pth` is a model."""
    assert fleet is not None, "without --kind the fleet was loaded"
    parts = path.absolute().parts[1:]
    for start in range(len(parts)):
        kind = fleet.kind_of_path("/".join(parts[start:]))
        if kind is not None:
            return kind.name
    kinds = ", ".join(kind.name for kind in fleet.kinds)
    raise CommandFailed(f"no kind's globs match {path}; say which with --kind ({kinds})", EXIT_USAGE)


def _refuse_namesakes(sources: list[Source]) -> None:
    """Two files of one name would silently become two versions of one artifact."""
    seen: dict[tuple[str, str], Source] = {}
    for source in sources:
        other = seen.setdefault((source.kind, source.name), source)
        if other is not source:
            raise CommandFailed(
                f"{other} and {source} would both be named {source.kind}/{source.name}; put them one at a time with "
                "--name",
                EXIT_USAGE,
            )
