"""Small secret files: written whole or not at all, readable by their owner alone.

Keys, certificates and the token book go through here and nowhere else. A reader sees the old content or the new,
never half of either, whatever moment the process or the machine dies.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

FOLDER_MODE = 0o700
FILE_MODE = 0o600
OTHERS = stat.S_IRWXG | stat.S_IRWXO  # any permission of group and others


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` durably: temporary file, fsync, rename, fsync of the folder. Raises OSError.

    Callers that may run at the same time hold a lock of their own: the temporary name is fixed, so that what a crash
    leaves behind is overwritten by the next writer instead of piling up.
    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        _write_durably(temporary, content)
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def _write_durably(path: Path, content: bytes) -> None:
    # O_EXCL follows no link and reuses no file, so the mode below is the mode the file has from its first byte.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, FILE_MODE)  # a strange umask must not leave a key its owner cannot read
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def make_private_folder(path: Path) -> None:
    """Create `path` for its owner alone, or take it as it is when it is there; its parent must exist."""
    path.mkdir(mode=FOLDER_MODE, exist_ok=True)
    path.chmod(FOLDER_MODE)
    fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Make the names in `path` durable: a rename is only there after a crash once its folder is synced."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_to_others(path: Path) -> bool:
    """Whether group or others have any permission on `path`."""
    return bool(path.stat().st_mode & OTHERS)
