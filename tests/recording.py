"""Power loss, rehearsed: a file layer that keeps a journal, and every disk that a crash could have left behind.

Use:

    files = RecordingFiles(tmp_path / "disk")          # everything below this folder is journalled
    wal = Wal.open(tmp_path / "disk" / "wal", files)   # run the code under test on it
    files.mark("accepted 7")                           # note what was promised, at the moment of the promise
    for state in crash_states(files, random_seeds=3):  # every prefix of the journal, several losses of each
        state.write_to(tmp_path / "after" / str(n))    # an ordinary folder: open the code under test on it
        assert promises(state.marks) <= recovered      # `state.marks` are the marks that precede the crash
        # put `state.why` into the assertion message: it names the prefix, the losses and the last operation

The operations really happen, below the folder given, so that reads see them; each is also journalled. Whatever lies
in the folder when the recorder is made counts as durable. Operations outside the folder happen unrecorded.

What may be lost, at a crash after any operation of the journal:

- content: each write, truncation or reservation of a file since the last `fsync`/`fdatasync` of that file may be
  there, not be there, be torn at 512-byte sectors, or be zeros of the right length (the size got out, the bytes not);
- names: each creation, link, rename, unlink and mkdir may have happened or not, whatever the order, until `fsync_dir`
  of the folder (of both folders, for a rename across two). A rename is one step: never half. Syncing a file does not
  make its name durable, though ext4 happens to do so;
- `syncfs` makes everything durable; `sync_file_range` nothing.

For each prefix there are the state in which nothing unsynced survives, the one in which everything does, and
`random_seeds` mixtures. Failing operations are journalled if they failed halfway (a short write), as the real file
shows. `RecordingFiles(root, inner=FailingFiles(...))` combines recording with injected faults.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from storage.files import Bytes, FileLayer

SECTOR_BYTES = 512  # the unit that a disk writes whole or not at all
ROOT = 0  # the folder given to the recorder


# The journal: one value for each thing that happened. Files and folders are numbered; names lead to numbers.


@dataclass(frozen=True, slots=True)
class Wrote:
    node: int
    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Resized:
    """A truncation, or (grow_only) a reservation."""

    node: int
    size_bytes: int
    grow_only: bool = False


@dataclass(frozen=True, slots=True)
class Attributes:
    node: int
    mode: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """A change of names that happens whole: (folder, name) now leads to a node, or to nothing."""

    verb: str
    changes: tuple[tuple[int, str, int | None], ...]
    made_folder: int | None = None


@dataclass(frozen=True, slots=True)
class SyncedFile:
    node: int


@dataclass(frozen=True, slots=True)
class SyncedFolder:
    node: int


@dataclass(frozen=True, slots=True)
class SyncedAll:
    pass


@dataclass(frozen=True, slots=True)
class Marked:
    mark: object


Content = Wrote | Resized | Attributes
Operation = Content | Named | SyncedFile | SyncedFolder | SyncedAll | Marked


class RecordingFiles(FileLayer):
    """A file layer whose `journal` can be replayed; see the module's docstring."""

    def __init__(self, root: Path, inner: FileLayer | None = None) -> None:
        self.root = Path(os.path.abspath(root))
        self.root.mkdir(parents=True, exist_ok=True)
        self.journal: list[Operation] = []
        self.initial = Disk()
        self._inner = inner or FileLayer()
        self._names: dict[tuple[int, str], int] = {}  # what the names lead to now
        self._nodes: dict[int, tuple[int, int]] = {}  # fd -> (node, open flags)
        self._next_node = 1
        self._adopt_folder(self.root, ROOT)

    def mark(self, mark: object) -> None:
        """Note something in the journal: usually a promise that holds from here on."""
        self.journal.append(Marked(mark))

    # Numbers for names

    def _adopt_folder(self, path: Path, node: int) -> None:
        self.initial.folders.add(node)
        for name in sorted(os.listdir(path)):
            self._adopt(path / name, node, name)

    def _adopt(self, path: Path, folder: int, name: str) -> int:
        """Take what is on the disk already, unknown to the journal, as durable."""
        node = self._new_node()
        self._names[folder, name] = node
        self.initial.names[folder, name] = node
        if path.is_dir():
            self._adopt_folder(path, node)
        else:
            info = path.stat()
            self.initial.contents[node] = File(bytearray(path.read_bytes()), info.st_mode & 0o7777, info.st_mtime_ns)
        return node

    def _new_node(self) -> int:
        self._next_node += 1
        return self._next_node - 1

    def _locate(self, path: Path) -> tuple[int, str] | None:
        """The folder's number and the name in it; None outside the root."""
        try:
            parts = Path(os.path.abspath(path)).relative_to(self.root).parts
        except ValueError:
            return None
        if not parts:
            return ROOT, ""
        node = ROOT
        here = self.root
        for part in parts[:-1]:
            here /= part
            known = self._names.get((node, part))
            node = self._adopt(here, node, part) if known is None else known
        return node, parts[-1]

    def _node(self, path: Path) -> int | None:
        place = self._locate(path)
        if place is None or place == (ROOT, ""):
            return None if place is None else ROOT
        known = self._names.get(place)
        return self._adopt(path, *place) if known is None else known

    def _change_names(self, verb: str, *changes: tuple[Path, int | None], made_folder: int | None = None) -> None:
        placed = [(place, node) for path, node in changes if (place := self._locate(path))]
        for place, node in placed:
            if node is None:
                self._names.pop(place, None)
            else:
                self._names[place] = node
        if placed:
            whole = tuple((folder, name, node) for (folder, name), node in placed)
            self.journal.append(Named(verb, whole, made_folder))

    # Descriptors

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        place = self._locate(path)
        is_new = place is not None and not os.path.lexists(path)
        fd = self._inner.open(path, flags, mode)
        if place is None:
            return fd
        if is_new:
            node = self._new_node()
            self._nodes[fd] = (node, flags)
            self._change_names("create", (path, node))
            self.journal.append(Attributes(node, mode=os.fstat(fd).st_mode & 0o7777))
        else:
            self._nodes[fd] = (self._node(path) or ROOT, flags)
            if flags & os.O_TRUNC:
                self.journal.append(Resized(self._nodes[fd][0], 0))
        return fd

    def close(self, fd: int) -> None:
        self._nodes.pop(fd, None)
        self._inner.close(fd)

    def read(self, fd: int, size_bytes: int) -> bytes:
        return self._inner.read(fd, size_bytes)

    def pread(self, fd: int, size_bytes: int, offset: int) -> bytes:
        return self._inner.pread(fd, size_bytes, offset)

    def writev(self, fd: int, buffers: list[Bytes]) -> int:  # type: ignore[override]
        start = self._position(fd)
        try:
            return self._inner.writev(fd, buffers)
        finally:
            self._note_written(fd, start, b"".join(buffers), os.lseek(fd, 0, os.SEEK_CUR) - start)

    def pwrite(self, fd: int, payload: Bytes, offset: int) -> int:
        written = self._inner.pwrite(fd, payload, offset)
        self._note_written(fd, offset, bytes(payload), written)
        return written

    def _position(self, fd: int) -> int:
        _, flags = self._nodes.get(fd, (None, 0))
        return os.lseek(fd, 0, os.SEEK_END if flags & os.O_APPEND else os.SEEK_CUR)

    def _note_written(self, fd: int, offset: int, content: bytes, written_bytes: int) -> None:
        if fd in self._nodes and written_bytes > 0:
            self.journal.append(Wrote(self._nodes[fd][0], offset, content[:written_bytes]))

    def _note(self, fd: int, make: type, *arguments: object) -> None:
        if fd in self._nodes:
            self.journal.append(make(self._nodes[fd][0], *arguments))

    def ftruncate(self, fd: int, size_bytes: int) -> None:
        self._inner.ftruncate(fd, size_bytes)
        self._note(fd, Resized, size_bytes)

    def fallocate(self, fd: int, offset: int, size_bytes: int) -> None:
        self._inner.fallocate(fd, offset, size_bytes)
        self._note(fd, Resized, offset + size_bytes, True)

    def fstat(self, fd: int) -> os.stat_result:
        return self._inner.fstat(fd)

    def fchmod(self, fd: int, mode: int) -> None:
        self._inner.fchmod(fd, mode)
        self._note(fd, Attributes, mode)

    def futime_ns(self, fd: int, mtime_ns: int) -> None:
        self._inner.futime_ns(fd, mtime_ns)
        self._note(fd, Attributes, None, mtime_ns)

    # Durability

    def fsync(self, fd: int) -> None:
        self._inner.fsync(fd)
        self._note(fd, SyncedFile)

    def fdatasync(self, fd: int) -> None:
        self._inner.fdatasync(fd)
        self._note(fd, SyncedFile)

    def syncfs(self, fd: int) -> None:
        self._inner.syncfs(fd)
        self.journal.append(SyncedAll())

    def sync_file_range(self, fd: int, offset: int, size_bytes: int) -> None:
        self._inner.sync_file_range(fd, offset, size_bytes)

    def fsync_dir(self, path: Path) -> None:
        self._inner.fsync_dir(path)
        node = self._node(path)
        if node is not None:
            self.journal.append(SyncedFolder(node))

    # Names

    def rename(self, source: Path, target: Path) -> None:
        node = self._node(source)
        self._inner.rename(source, target)
        self._change_names("rename", (source, None), (target, node))

    def link(self, source: Path, target: Path) -> None:
        node = self._node(source)
        self._inner.link(source, target)
        self._change_names("link", (target, node))

    def unlink(self, path: Path) -> None:
        self._node(path)
        self._inner.unlink(path)
        self._change_names("unlink", (path, None))

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        self._inner.mkdir(path, mode)
        node = self._new_node()
        self._change_names("mkdir", (path, node), made_folder=node)

    def rmdir(self, path: Path) -> None:
        self._node(path)
        self._inner.rmdir(path)
        self._change_names("rmdir", (path, None))

    def stat(self, path: Path) -> os.stat_result:
        return self._inner.stat(path)

    def lstat(self, path: Path) -> os.stat_result:
        return self._inner.lstat(path)

    def listdir(self, path: Path) -> list[str]:
        return self._inner.listdir(path)

    def statvfs(self, path: Path) -> os.statvfs_result:
        return self._inner.statvfs(path)

    # Copies inside the kernel are journalled as the bytes that arrived

    def reflink(self, source_fd: int, target_fd: int) -> None:
        self._inner.reflink(source_fd, target_fd)
        size_bytes = os.fstat(source_fd).st_size
        self._note_written(target_fd, 0, os.pread(source_fd, size_bytes, 0), size_bytes)

    def copy_file_range(
        self, source_fd: int, target_fd: int, size_bytes: int, source_offset: int, target_offset: int
    ) -> int:
        copied = self._inner.copy_file_range(source_fd, target_fd, size_bytes, source_offset, target_offset)
        self._note_written(target_fd, target_offset, os.pread(target_fd, copied, target_offset), copied)
        return copied


# The disk: what is certain, what is still open, and what a crash makes of it.


@dataclass(slots=True)
class File:
    content: bytearray = field(default_factory=bytearray)
    mode: int = 0o600
    mtime_ns: int | None = None

    def copy(self) -> File:
        return File(bytearray(self.content), self.mode, self.mtime_ns)

    def apply(self, change: Content) -> None:
        match change:
            case Wrote(_, offset, content):
                self._grow(offset)
                self.content[offset : offset + len(content)] = content
            case Resized(_, size_bytes, grow_only):
                self._grow(size_bytes)
                if not grow_only:
                    del self.content[size_bytes:]
            case Attributes(_, mode, mtime_ns):
                self.mode = self.mode if mode is None else mode
                self.mtime_ns = self.mtime_ns if mtime_ns is None else mtime_ns

    def _grow(self, size_bytes: int) -> None:
        self.content.extend(bytes(max(0, size_bytes - len(self.content))))


@dataclass(slots=True)
class OpenNaming:
    """A change of names that is not certain until each of `folders` has been synced."""

    change: Named
    folders: set[int]


@dataclass(slots=True)
class Disk:
    """Durable state and the operations since then, fed with a journal one operation at a time."""

    names: dict[tuple[int, str], int] = field(default_factory=dict)
    contents: dict[int, File] = field(default_factory=dict)
    folders: set[int] = field(default_factory=set)
    open_names: list[OpenNaming] = field(default_factory=list)
    open_contents: dict[int, list[Content]] = field(default_factory=dict)

    def feed(self, operation: Operation) -> None:
        match operation:
            case Wrote() | Resized() | Attributes():
                self.open_contents.setdefault(operation.node, []).append(operation)
            case Named():
                if operation.made_folder is not None:
                    self.folders.add(operation.made_folder)
                touched = {folder for folder, _, _ in operation.changes}
                self.open_names.append(OpenNaming(operation, touched))
            case SyncedFile(node):
                self._sync_file(node)
            case SyncedFolder(node):
                self._sync_folder(node)
            case SyncedAll():
                for node in list(self.open_contents):
                    self._sync_file(node)
                for node in sorted(self.folders):
                    self._sync_folder(node)
            case Marked():
                pass

    def _sync_file(self, node: int) -> None:
        file = self.contents.setdefault(node, File())
        for change in self.open_contents.pop(node, []):
            file.apply(change)

    def _sync_folder(self, node: int) -> None:
        for naming in self.open_names:
            naming.folders.discard(node)
        while self.open_names and not self.open_names[0].folders:
            _rename(self.names, self.open_names.pop(0).change)

    def crash(self, survival: Survival) -> Tree:
        names = dict(self.names)
        for naming in self.open_names:
            if not naming.folders or survival.name_survives():
                _rename(names, naming.change)
        tree: Tree = {}
        self._walk(ROOT, "", names, survival, tree)
        return tree

    def _walk(
        self, folder: int, prefix: str, names: dict[tuple[int, str], int], survival: Survival, tree: Tree
    ) -> None:
        for (parent, name), node in sorted(names.items()):
            if parent != folder:
                continue
            path = f"{prefix}{name}"
            if node in self.folders:
                tree[path] = None
                self._walk(node, f"{path}/", names, survival, tree)
            else:
                tree[path] = self._file(node, survival)

    def _file(self, node: int, survival: Survival) -> File:
        file = self.contents.get(node, File()).copy()
        for change in self.open_contents.get(node, []):
            for survivor in survival.of_content(change):
                file.apply(survivor)
        return file


Tree = dict[str, File | None]  # path below the root -> file, or None for a folder


def _rename(names: dict[tuple[int, str], int], change: Named) -> None:
    for folder, name, node in change.changes:
        if node is None:
            names.pop((folder, name), None)
        else:
            names[folder, name] = node


class Survival:
    """How much of what was not synced survives. `chance` 0 is nothing, 1 everything, between them a seeded mixture."""

    def __init__(self, chance: float, seed: int = 0) -> None:
        self._chance = chance
        self._random = Random(seed)

    def name_survives(self) -> bool:
        return self._random.random() < self._chance

    def of_content(self, change: Content) -> list[Content]:
        if self._random.random() < self._chance:
            return [change]
        if self._chance == 0 or not isinstance(change, Wrote):
            return []
        fate = self._random.randrange(3)
        if fate == 0:
            return [Resized(change.node, change.offset + len(change.content), grow_only=True)]
        return self._sectors(change) if fate == 1 else []

    def _sectors(self, change: Wrote) -> list[Content]:
        """Some of the write's sectors, each whole."""
        pieces: list[Content] = []
        offset, end = change.offset, change.offset + len(change.content)
        while offset < end:
            stop = min(end, offset - offset % SECTOR_BYTES + SECTOR_BYTES)
            if self._random.random() < 0.5:
                pieces.append(Wrote(change.node, offset, change.content[offset - change.offset : stop - change.offset]))
            offset = stop
        return pieces


@dataclass(frozen=True, slots=True)
class CrashState:
    """One disk that a power loss could leave. `marks` are those made before it, in order."""

    why: str
    tree: Tree
    marks: tuple[object, ...]

    def write_to(self, folder: Path) -> Path:
        """Lay the tree down in a folder that does not exist yet, and return it."""
        folder.mkdir(parents=True)
        for path, file in self.tree.items():
            if file is None:
                (folder / path).mkdir()
                continue
            (folder / path).write_bytes(file.content)
            (folder / path).chmod(file.mode | 0o600)
            if file.mtime_ns is not None:
                os.utime(folder / path, ns=(file.mtime_ns, file.mtime_ns))
        return folder


def crash_states(recorded: RecordingFiles, random_seeds: int = 3) -> Iterator[CrashState]:
    """Every state worth looking at, each once: a tree that comes again with the same marks is left out."""
    disk = recorded.initial
    disk = Disk(dict(disk.names), {node: file.copy() for node, file in disk.contents.items()}, set(disk.folders))
    marks: list[object] = []
    seen: set[tuple[int, int]] = set()
    for prefix in range(len(recorded.journal) + 1):
        if prefix:
            operation = recorded.journal[prefix - 1]
            disk.feed(operation)
            if isinstance(operation, Marked):
                marks.append(operation.mark)
        for choice, survival in _survivals(prefix, random_seeds):
            tree = disk.crash(survival)
            key = (_fingerprint(tree), len(marks))
            if key not in seen:
                seen.add(key)
                last = recorded.journal[prefix - 1] if prefix else "nothing"
                yield CrashState(f"{choice} of what was not synced after {prefix}: {last!r:.200}", tree, tuple(marks))


def _survivals(prefix: int, random_seeds: int) -> Iterator[tuple[str, Survival]]:
    yield "nothing", Survival(0)
    yield "everything", Survival(1)
    for seed in range(random_seeds):
        yield f"seed {seed}", Survival((0.25, 0.5, 0.8)[seed % 3], seed=prefix * 1_000 + seed)


def _fingerprint(tree: Tree) -> int:
    return hash(tuple((path, file and (bytes(file.content), file.mode, file.mtime_ns)) for path, file in tree.items()))


class FailingFiles(FileLayer):
    """Fails chosen calls: `FailingFiles(inner, verbs={"writev"}, at=3, code=errno.ENOSPC)` fails the third writev.

    Calls of the named methods are counted from 1; call number `at` and the `times - 1` after it raise `OSError(code)`.
    A failing write leaves half of its bytes in the file, as a disk that runs full does. `calls` counts what was seen,
    so that a test can go through "fail the first, the second, ..." until nothing fails any more.
    """

    def __init__(self, inner: FileLayer | None = None, *, verbs: set[str], at: int, code: int, times: int = 1) -> None:
        self._wrapped = inner or FileLayer()
        self.verbs = verbs
        self.at = at
        self.code = code
        self.times = times
        self.calls = 0

    @property
    def has_failed(self) -> bool:
        return self.calls >= self.at

    def __getattribute__(self, name: str) -> object:
        if name.startswith("_") or name not in _FILE_CALLS:
            return super().__getattribute__(name)
        method = getattr(self._wrapped, "writev" if name == "write" else name)
        if name == "write":
            return lambda fd, payload: self.writev(fd, [payload])
        return lambda *arguments: self._call(name, method, arguments)

    def _call(self, name: str, method, arguments):  # type: ignore[no-untyped-def]
        if name in self.verbs:
            self.calls += 1
            if self.at <= self.calls < self.at + self.times:
                if name == "writev":
                    whole = b"".join(arguments[1])
                    with contextlib.suppress(OSError):
                        method(arguments[0], [whole[: len(whole) // 2]])
                raise OSError(self.code, os.strerror(self.code))
        return method(*arguments)


_FILE_CALLS = {name for name in vars(FileLayer) if not name.startswith("_")}
