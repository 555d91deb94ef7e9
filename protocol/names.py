"""Names of artifacts and nodes: what is allowed, and which path a name is published under.

`<kind>/<path>` for kinds the cluster shares, `<kind>/<origin>/<path>` for kinds every node writes. Names come from
users and from the network; everything here refuses before a path is ever built from one.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

NAME_BYTES_MAX = 1024  # below PATH_MAX (4096) with room for the root and our own folders
PART_BYTES_MAX = 255  # NAME_MAX of the file systems in use
NODE_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
KIND_PATTERN = re.compile(r"[a-z][a-z0-9_-]{0,31}")
OWN_FOLDER = ".spore"  # below every root: store UUID, staging, versions
PEERS_FOLDER = "peers"  # below every root: what other nodes wrote under their own names
NOT_PARTS = frozenset(("", ".", ".."))  # what a file system would read as something else than a name
SQLITE_SIDECARS = ("-wal", "-shm", "-journal")  # SQLite plays one of these into the database it lies beside
RESERVED_KIND = "spore"  # our own records, for example revocations


class NameRefused(ValueError):
    """A name that cannot be used; the message says why and what to do."""


@lru_cache(maxsize=1024)  # each of thousands of rows names one of a few nodes
def check_node(node: str) -> str:
    if not NODE_PATTERN.fullmatch(node):
        raise NameRefused(
            f"node name {node!r} is not usable: use 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning and ending "
            "with a letter or digit"
        )
    return node


def check_path(path: str) -> str:
    """A relative path that stays below its root on every node; returns it unchanged."""
    problem = _path_problem(path)
    if problem:
        raise NameRefused(f"name {path[:80]!r} is not usable: {problem}")
    return path


def _path_problem(path: str) -> str:
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "it is not valid UTF-8; rename the file"
    if not path or len(encoded) > NAME_BYTES_MAX:
        return f"it must have 1 to {NAME_BYTES_MAX} bytes and has {len(encoded)}"
    if path[0] == "/":
        return "it is absolute; give a path below the root"
    # Nearly every name is printable, which one call tells: this runs for each of thousands of puts a second.
    if not path.isprintable() and any(unicodedata.category(character) == "Cc" for character in path):
        return "it holds a control character; rename the file"
    parts = path.split("/")
    for part in parts:
        if part in NOT_PARTS:
            return f"the part {part!r} is not allowed; write the path plainly"
    if len(encoded) > PART_BYTES_MAX:
        for part in parts:
            if len(part.encode()) > PART_BYTES_MAX:
                return f"the part {part[:20]!r}… has more than {PART_BYTES_MAX} bytes; shorten it"
    return ""


@lru_cache(maxsize=4096)  # a name is checked as a row, in an offer and before it is published, all within a second
def check_name(name: str) -> str:
    """A whole name, with its kind in front; returns it unchanged."""
    check_path(name)
    kind, slash, path = name.partition("/")
    if not slash or not KIND_PATTERN.fullmatch(kind):
        raise NameRefused(f"name {name[:80]!r} is not usable: it must read <kind>/<path>, as in model/best.pth")
    if path.split("/")[0] == OWN_FOLDER:
        raise NameRefused(f"name {name[:80]!r} is not usable: {OWN_FOLDER}/ is spore's own folder")
    return name


def name_of(kind: str, path: str, origin: str, per_node: bool) -> str:
    """The name of the file at `path` below the root of `origin`."""
    name = check_name(f"{kind}/{origin}/{path}" if per_node else f"{kind}/{path}")
    check_publishable(name, origin, per_node)
    return name


def publication_path(name: str, origin: str, own_node: str, per_node: bool) -> str:
    """Where a record's bytes are published below our root.

    Another node's file of a per-node kind goes to `peers/<origin>/<path>`, so that it can neither meet ours nor
    be taken for a file of ours by the watcher. Raises NameRefused where `publishable` says no.
    """
    check_publishable(name, origin, per_node)
    path = name.partition("/")[2]
    if per_node:
        path = path.partition("/")[2]
        if origin != own_node:
            path = f"{PEERS_FOLDER}/{origin}/{path}"
    return check_path(path)


def publishable(name: str, origin: str, per_node: bool) -> bool:
    """Whether a (checked) name can be published by every node: if not, a record from the network is not taken."""
    return not _publication_problem(name, origin, per_node)


def check_publishable(name: str, origin: str, per_node: bool) -> None:
    """Raises NameRefused for a (checked) name that some node could not publish below its root."""
    problem = _publication_problem(name, origin, per_node)
    if problem:
        raise NameRefused(f"name {name[:80]!r} is not usable: {problem}")


def _publication_problem(name: str, origin: str, per_node: bool) -> str:
    """Per-node names carry their origin and leave room for `peers/<origin>/`; no path lies in a folder of ours, and
    none is a sidecar: a crafted `live.db-wal` beside a user's database would be replayed into it."""
    path = name.partition("/")[2]
    if per_node:
        writer, _, path = path.partition("/")
        if writer != origin or not path:
            return f"it must carry the node that wrote it, as in game/{origin}/first.db"
        if len(f"{PEERS_FOLDER}/{origin}/{path}".encode()) > NAME_BYTES_MAX:
            return f"below {PEERS_FOLDER}/{origin}/ it would have more than {NAME_BYTES_MAX} bytes; shorten it"
    if path.lower().endswith(SQLITE_SIDECARS):  # lower: some file systems do not tell the cases apart
        return "SQLite would play it into a database of that name; rename it so that it ends in something else"
    first = path.partition("/")[0]
    return f"{first}/ is spore's own folder" if first in (OWN_FOLDER, PEERS_FOLDER) else ""
