"""Look at the disk for the watcher: the entries of one folder, and the state of one candidate file.

Everything here blocks and therefore runs in the watcher's threads; nothing here remembers anything. Paths are relative
to the root, with `/`. A symlink is followed only to a regular file below the same root, and a symlinked folder never,
so that neither loops nor other people's files come in.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from node.patterns import KindPatterns, reserved, sidecar_base
from node.stability import FileIdentity, Writer, log_identity, look
from protocol.names import NAME_BYTES_MAX, NameRefused, check_path


@dataclass(frozen=True, slots=True)
class FileSeen:
    """A file that matches a kind, as a folder listing shows it."""

    path: str
    kind: str
    status: os.stat_result


@dataclass(frozen=True, slots=True)
class FolderSeen:
    """A folder that may hold such files."""

    path: str


@dataclass(frozen=True, slots=True)
class FolderUnread:
    """A folder whose files could not be listed now: what lies below it is unknown, not gone."""

    path: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Something that matches and cannot be an artifact, with the sentence that says why."""

    path: str
    sentence: str


Entry = FileSeen | FolderSeen | FolderUnread | Refused


@dataclass(frozen=True, slots=True)
class State:
    """One candidate at one moment. `writer` is UNKNOWN for databases, whose stability is not asked for.

    `log_identity` is a database's write-ahead log while it holds anything.
    """

    status: os.stat_result
    writer: Writer
    log_identity: FileIdentity | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """There is nothing under the path any more."""


def read_folder(root: str, folder: str, patterns: KindPatterns) -> Iterator[Entry]:
    """The entries of one folder that concern us. A folder that vanishes meanwhile yields nothing more."""
    try:
        with os.scandir(os.path.join(root, folder)) as listing:
            for entry in listing:
                yield from _classified(root, folder, entry, patterns)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not folder:  # a root that is away is not an empty root
            yield FolderUnread(folder, f"the root {root!r} cannot be listed ({error.strerror}); is it mounted?")
    except OSError as error:
        why = f"folder {folder[:80]!r} cannot be listed ({error.strerror}); nothing below it is kept until it can be"
        yield FolderUnread(folder, why)


def examine(root: str, path: str, *, database: bool) -> State | Gone | Refused:
    """One candidate file now: what it is, and whether somebody still writes it."""
    try:
        target = _regular_target(root, path)
        if isinstance(target, Refused):
            return target
        if database:
            # Never opened here: closing any descriptor of a database drops the locks that a snapshot of it holds in
            # this process (POSIX record locks belong to the process, not to the descriptor).
            return State(os.stat(target), Writer.UNKNOWN, log_identity(target))
        return State(*look(target))
    except (FileNotFoundError, NotADirectoryError):
        return Gone()
    except OSError as error:
        return Refused(path, f"{path[:80]!r} cannot be read ({error.strerror}); {_advice(error)}")


def _classified(root: str, folder: str, entry: os.DirEntry[str], patterns: KindPatterns) -> Iterator[Entry]:
    path = f"{folder}/{entry.name}" if folder else entry.name
    if entry.is_dir(follow_symlinks=False):
        if patterns.may_hold(path):
            yield _named(path, FolderSeen(path))
        elif patterns.kind_of(path) is not None:
            yield Refused(path, f"{path[:80]!r} is a folder and its pattern asks for a file; end the pattern in /**")
    elif patterns.may_hold(path) and _links_to_folder(entry):
        yield Refused(path, f"{path[:80]!r} is a link to a folder and is not followed; watch the folder itself")
    elif (kind := patterns.kind_of(path)) is not None:
        yield from _matching(root, path, kind, entry)


def _links_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:
        return False  # a link in a circle leads nowhere


def _matching(root: str, path: str, kind: str, entry: os.DirEntry[str]) -> Iterator[Entry]:
    base = sidecar_base(path)
    if base is not None:
        if not os.path.lexists(os.path.join(root, base)):
            why = "is named as SQLite names its own files, and those are never kept; rename it if it is an artifact"
            yield Refused(path, f"{path[:80]!r} {why}")
        return
    try:
        if entry.is_file(follow_symlinks=False):  # the usual case, with one system call
            yield _named(path, FileSeen(path, kind, entry.stat(follow_symlinks=False)))
            return
        target = _regular_target(root, path)
        yield target if isinstance(target, Refused) else _named(path, FileSeen(path, kind, os.stat(target)))
    except FileNotFoundError:
        return
    except OSError as error:
        yield Refused(path, f"{path[:80]!r} cannot be read ({error.strerror}); {_advice(error)}")


def _named(path: str, seen: FileSeen | FolderSeen) -> Entry:
    if path.isascii() and path.isprintable() and len(path) <= NAME_BYTES_MAX:
        return seen  # what a folder listing gives has no other faults; the full check takes longer than the stat
    try:
        check_path(path)
    except NameRefused as refusal:
        return Refused(path, str(refusal))
    return seen


def _regular_target(root: str, path: str) -> str | Refused:
    """The absolute path to open: the file itself, or what a link below the root names below the root.

    Raises OSError when there is nothing; a dangling link counts as nothing.
    """
    full = os.path.join(root, path)
    status = os.lstat(full)
    if stat.S_ISLNK(status.st_mode):
        full = os.path.realpath(full)
        inside = os.path.relpath(full, root)
        if inside == ".." or inside.startswith("../") or reserved(inside):
            return Refused(path, f"{path[:80]!r} is a link to a file outside the watched root; copy the file instead")
        status = os.lstat(full)
    if not stat.S_ISREG(status.st_mode):
        return Refused(path, f"{path[:80]!r} is not a regular file; only regular files are kept")
    return full


def _advice(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "give the agent's user read permission"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files"
    return "it is looked at again at the next rescan"
