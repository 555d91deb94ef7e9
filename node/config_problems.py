"""What is wrong with a configuration: one problem, all of them as an exception, and the book they are collected in.

Every reader of configuration writes into one `Findings`, so that a user sees every mistake at once with its line.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

# A file with more mistakes than this is not a hosts file; a list that long helps nobody, and each one costs time.
PROBLEMS_MAX = 200
# Enough of a wrong value to recognise it in the file; the rest would only fill the terminal.
SHOWN_CHARACTERS_MAX = 80
# Comparing one word with this many takes some milliseconds; a file may hold a thousand wrong words.
COMPARED_WORDS_MAX = 200

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it stands (line 0: nowhere in particular), what is wrong and what to do instead."""

    line: int
    path: str
    value: str
    message: str
    suggestion: str

    def sentence(self, filename: str) -> str:
        """`file:line: path: message. suggestion`, as editors and people read it."""
        place = f"{filename}:{self.line}" if self.line else filename
        setting = f"{self.path}: " if self.path else ""
        return f"{place}: {setting}{self.message}. {self.suggestion}".rstrip()


class ConfigError(Exception):
    """A configuration that cannot be used, with every problem found in it, in the order of the file."""

    def __init__(self, problems: Iterable[Problem], filename: str = "distributed_hosts.yaml") -> None:
        self.problems = tuple(problems)
        self.filename = filename
        super().__init__("\n".join(problem.sentence(filename) for problem in self.problems))


class BadValueError(ValueError):
    """A single value that cannot be read. Raised by the readers of values, turned into a `Problem` with its line."""

    def __init__(self, message: str, suggestion: str) -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion


@dataclass(slots=True)
class Findings:
    """The book in which the readers of one file note errors and warnings. `lines` tells where each path stands."""

    lines: Mapping[Path, int] = field(default_factory=dict)
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def error(
        self, path: Path, message: str, suggestion: str = "", value: object = "", line: int | None = None
    ) -> None:
        """Note a mistake that makes the file unusable; the line only where the path alone does not tell it."""
        if len(self.errors) < PROBLEMS_MAX:
            problem = self._problem(path, message, suggestion, value)
            self.errors.append(problem if line is None else replace(problem, line=line))

    def warning(self, path: Path, message: str, suggestion: str = "", value: object = "") -> None:
        """Note something that works and is probably not meant."""
        if len(self.warnings) < PROBLEMS_MAX:
            self.warnings.append(self._problem(path, message, suggestion, value))

    def _problem(self, path: Path, message: str, suggestion: str, value: object) -> Problem:
        return Problem(self.line(path), dotted(path), shown(value) if value != "" else "", message, suggestion)

    def line(self, path: Path) -> int:
        """The line of a path, or of the nearest thing around it that stands in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)


def dotted(path: Path) -> str:
    """`hosts.gpu-1.address`, with the unprintable made visible and the endless cut."""
    return ".".join(shown(part).strip("'") if isinstance(part, str) else str(part) for part in path)


def shown(value: object) -> str:
    """A value as it may be printed: quoted, on one line, no terminal control characters, not endless."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[: SHOWN_CHARACTERS_MAX - 1] + "…"


def did_you_mean(wrong: str, known: Iterable[str], otherwise: str) -> str:
    """A suggestion naming the closest known word, or the sentence given."""
    words = sorted(known)[:COMPARED_WORDS_MAX]
    close = get_close_matches(wrong.lower()[:64], words, n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else otherwise
