"""Which kind a path below the root belongs to: the globs of the hosts file, compiled once.

`*` and `?` stay within one part of the path, `**` as a whole part spans any number of folders (none included),
`[a-z]` and `[!a-z]` are one character. As in a shell, a leading dot is matched only by a pattern that writes it: the
temporary files of rsync and editors and folders such as `.git` are not artifacts by accident. `.spore/` and `peers/`
never match.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import reduce

from protocol.names import OWN_FOLDER, PEERS_FOLDER

SIDECAR_SUFFIXES = ("-wal", "-shm", "-journal")  # SQLite's own files beside a database, never artifacts
_VISIBLE = r"(?!\.)[^/]+"
_PIECE = re.compile(r"\*+|\?|\[!?.[^\]]*\]|.", re.DOTALL)  # an unclosed bracket is a plain character


class PatternRefused(ValueError):
    """A glob that cannot be used; the message says why and what to do."""


class KindPatterns:
    """The globs of all kinds. When two kinds match one path, the one named first has it."""

    def __init__(self, patterns: Mapping[str, Sequence[str]]) -> None:
        self._files = [
            (kind, re.compile("|".join(f"(?:{_file_expression(_parts(glob))})" for glob in globs)))
            for kind, globs in patterns.items()
            if globs
        ]
        folders = [_folder_expression(_parts(glob)) for globs in patterns.values() for glob in globs]
        self._folders = re.compile("|".join(f"(?:{folder})" for folder in folders) or "(?!)")

    def kind_of(self, path: str) -> str | None:
        """The kind of the file at this relative path, or None when it is not watched."""
        if reserved(path):
            return None
        return next((kind for kind, expression in self._files if expression.fullmatch(path)), None)

    def may_hold(self, folder: str) -> bool:
        """Whether a file below this relative folder ("" is the root) could match; others need no look and no watch."""
        return not reserved(folder) and bool(self._folders.fullmatch("/" + folder if folder else ""))


def reserved(path: str) -> bool:
    """Our own folder, and what we publish for other nodes: never the user's files."""
    return path.partition("/")[0] in (OWN_FOLDER, PEERS_FOLDER)


def sidecar_base(path: str) -> str | None:
    """The database that a sidecar belongs to, or None for any other file."""
    suffix = next((suffix for suffix in SIDECAR_SUFFIXES if path.endswith(suffix)), None)
    return path.removesuffix(suffix) if suffix and path != suffix else None


def _parts(glob: str) -> list[str]:
    parts = glob.split("/")
    if not glob or any(part in ("", ".", "..") for part in parts):
        raise PatternRefused(f"the pattern {glob!r} must be a plain path below the root, as in games/**/*.db")
    if reserved(glob):
        raise PatternRefused(f"the pattern {glob!r} lies in a folder that spore keeps for itself; name another one")
    return parts


def _file_expression(parts: Sequence[str]) -> str:
    """Each `**` swallows the slash behind it, so that it can stand for no folder at all."""
    pieces: list[str] = []
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part != "**":
            pieces.append(_part_expression(part) + ("" if last else "/"))
        elif last:
            pieces.append(f"(?:{_VISIBLE}/)*{_VISIBLE}")
        elif parts[index + 1] != "**":  # a run of `**` means one: repeated, it would backtrack exponentially
            pieces.append(f"(?:{_VISIBLE}/)*")
    return "".join(pieces)


def _folder_expression(parts: Sequence[str]) -> str:
    """Every folder on the way to a match, as an expression over "/" + path: nested optional parts."""
    if "**" in parts:
        fixed, tail = parts[: parts.index("**")], f"(?:/{_VISIBLE})*"
    else:
        fixed, tail = parts[:-1], ""
    return reduce(lambda inner, part: f"(?:/{_part_expression(part)}{inner})?", reversed(fixed), tail)


def _part_expression(part: str) -> str:
    guard = "" if part.startswith(".") else r"(?!\.)"
    return guard + "".join(_piece_expression(part, piece) for piece in _PIECE.findall(part))


def _piece_expression(part: str, piece: str) -> str:
    if piece.startswith("*"):
        return "[^/]*"
    if piece == "?":
        return "[^/]"
    if len(piece) > 1:
        return _class_expression(part, piece[1:-1])
    return re.escape(piece)


def _class_expression(part: str, body: str) -> str:
    negated = body.startswith("!")
    members = re.sub(r"([\\\[\]^&~|])", r"\\\1", body[1:] if negated else body)
    expression = f"(?!/)[{'^' if negated else ''}{members}]"
    try:
        re.compile(expression)
    except re.error as error:
        raise PatternRefused(f"the pattern part {part!r} has a bad range in [{body}]; write it low-high") from error
    return expression
