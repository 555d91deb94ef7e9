"""The one door through which storage touches the disk.

Every write, sync, rename and unlink that a promise of durability rests on goes through a `FileLayer`. The
WAL, staging and publication take one as an argument; tests pass a layer that records the order of operations
or fails one of them. The methods are thin: a system call each, with the two habits that every caller needs
(short writes are finished, oversized vectors are cut). Nothing here decides anything.

All methods raise `OSError` as the kernel reports it. File descriptors are plain integers and are not
inherited by child processes (Python opens with O_CLOEXEC).

Safe under threads: the class keeps no state at all; whoever shares a descriptor between threads uses `pread`
and `pwrite`, which carry their own offset.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path

WRITEV_BUFFERS_MAX = 1024  # IOV_MAX on Linux: the kernel answers EINVAL to a longer vector
FICLONE = 0x40049409  # ioctl(2) _IOW(0x94, 9, int): share the extents of a whole file (btrfs, XFS, bcachefs)

Bytes = bytes | bytearray | memoryview


class FileLayer:
    """Real system calls. Subclass it to record or to fail them; `write` goes through `writev`."""

    # Descriptors

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        """Return a descriptor. The name that O_CREAT makes is durable after `fsync_dir` of its folder."""
        return os.open(path, flags, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def read(self, fd: int, size_bytes: int) -> bytes:
        return os.read(fd, size_bytes)

    def pread(self, fd: int, size_bytes: int, offset: int) -> bytes:
        """Read at an offset; fewer bytes than asked means the end of the file."""
        return os.pread(fd, size_bytes, offset)

    def write(self, fd: int, payload: Bytes) -> int:
        """Write the whole payload where the descriptor stands. On an error, a part may be in the file."""
        return self.writev(fd, [payload])

    def writev(self, fd: int, buffers: Sequence[Bytes]) -> int:
        """Write all buffers in order, any number of them. On an error a part of them may be in the file."""
        rest = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        total_bytes = 0
        first = 0
        while first < len(rest):
            written_bytes = os.writev(fd, rest[first : first + WRITEV_BUFFERS_MAX])
            total_bytes += written_bytes
            while first < len(rest) and written_bytes >= len(rest[first]):
                written_bytes -= len(rest[first])
                first += 1
            if written_bytes:
                rest[first] = rest[first][written_bytes:]
        return total_bytes

    def pwrite(self, fd: int, payload: Bytes, offset: int) -> int:
        """Write the whole payload at an offset. On an error a part of it may be in the file."""
        rest = memoryview(payload).cast("B")
        while len(rest):
            written_bytes = os.pwrite(fd, rest, offset)
            offset += written_bytes
            rest = rest[written_bytes:]
        return len(payload)

    def ftruncate(self, fd: int, size_bytes: int) -> None:
        os.ftruncate(fd, size_bytes)

    def fallocate(self, fd: int, offset: int, size_bytes: int) -> None:
        """Reserve blocks, growing the file if need be. EOPNOTSUPP where the platform has no such call."""
        if sys.platform == "darwin":
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        os.posix_fallocate(fd, offset, size_bytes)

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def fchmod(self, fd: int, mode: int) -> None:
        os.fchmod(fd, mode)

    def futime_ns(self, fd: int, mtime_ns: int) -> None:
        """Set access and modification time of an open file."""
        os.utime(fd, ns=(mtime_ns, mtime_ns))

    def drop_pages(self, fd: int) -> None:
        """Forget what memory holds of a file, as far as it is on the disk, so that the next read asks the disk."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    # Durability

    def fsync(self, fd: int) -> None:
        """Make a file durable. After a failure the bytes may be gone, and the next call may say "done"."""
        if sys.platform == "darwin":
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync(2) there leaves the bytes in the drive's cache
        else:
            os.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        """Make content and size durable, not its times. A failure means what it does for `fsync`."""
        if sys.platform == "darwin":
            self.fsync(fd)
        else:
            os.fdatasync(fd)

    def syncfs(self, fd: int) -> None:
        """Make everything on the file system of this descriptor durable; one call for many small files."""
        if sys.platform == "darwin":
            os.sync()
        elif _libc().syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def sync_file_range(self, fd: int, offset: int, size_bytes: int) -> None:
        """Start writing a range back, so that a later fdatasync waits less. Promises nothing by itself."""
        if sys.platform == "darwin":
            return
        start_write_back = 2  # SYNC_FILE_RANGE_WRITE
        arguments = (ctypes.c_int(fd), ctypes.c_int64(offset), ctypes.c_int64(size_bytes), start_write_back)
        if _libc().sync_file_range(*arguments) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def fsync_dir(self, path: Path) -> None:
        """Make the names in a folder durable: what was created, renamed, linked or unlinked there before."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # Names

    def rename(self, source: Path, target: Path) -> None:
        """Replace the target at once. Durable after `fsync_dir` of both folders."""
        os.rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name; FileExistsError rather than replace. Durable after `fsync_dir`."""
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        """Make one folder. Durable after `fsync_dir` of its parent."""
        os.mkdir(path, mode)

    def rmdir(self, path: Path) -> None:
        os.rmdir(path)

    def stat(self, path: Path) -> os.stat_result:
        return os.stat(path)

    def lstat(self, path: Path) -> os.stat_result:
        """As `stat`, without following a symbolic link at the end of the path."""
        return os.lstat(path)

    def listdir(self, path: Path) -> list[str]:
        """The names in a folder, sorted, so that whatever iterates them has one order everywhere."""
        return sorted(os.listdir(path))

    def names(self, path: Path, count_max: int) -> frozenset[str] | None:
        """The names in a folder, to look things up in; None when there are more than that."""
        with os.scandir(path) as entries:
            found = frozenset(entry.name for entry in islice(entries, count_max + 1))
        return found if len(found) <= count_max else None

    def statvfs(self, path: Path) -> os.statvfs_result:
        return os.statvfs(path)

    # Copies inside the kernel

    def reflink(self, source_fd: int, target_fd: int) -> None:
        """Share all extents of the source. EOPNOTSUPP, EXDEV, EINVAL or ENOTTY: the caller copies instead."""
        if sys.platform == "darwin":
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        fcntl.ioctl(target_fd, FICLONE, source_fd)

    def copy_file_range(
        self, source_fd: int, target_fd: int, size_bytes: int, source_offset: int, target_offset: int
    ) -> int:
        """Copy up to `size_bytes` inside the kernel and return how many went; 0 is the end of the source."""
        if sys.platform == "darwin":
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return os.copy_file_range(source_fd, target_fd, size_bytes, source_offset, target_offset)


@cache
def _libc() -> ctypes.CDLL:
    """The C library of this process, for the two calls that Python's `os` does not have."""
    return ctypes.CDLL(None, use_errno=True)
