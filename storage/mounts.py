"""Which kind of file system a path lies on: the manifest and the WAL must not stand on a network one.

SQLite's locks and shared memory are not reliable over a network, and an fsync there promises what the server
promises. Linux tells in `/proc/self/mountinfo`; where that file is missing the question cannot be answered and
every path passes as local.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

MOUNTS_FILE = Path("/proc/self/mountinfo")
MOUNTS_BYTES_MAX = 8 << 20  # a host with ten thousand container mounts has about 2 MB

# Types whose bytes are on another machine, as mountinfo spells them. FUSE types carry their program behind a dot.
_NETWORK_TYPE = re.compile(
    r"nfs|nfs4|cifs|smb|smbfs|smb2|smb3|ncpfs|afs|coda|9p|"
    r"ceph|glusterfs|lustre|beegfs|gpfs|ocfs2|gfs2|pvfs2|orangefs|davfs|vboxsf|prl_fs|"
    r"fuse\.(?:sshfs|glusterfs|ceph|ceph-fuse|s3fs|rclone|gcsfuse|goofys|juicefs|davfs|smbnetfs|"
    r"mount-s3|blobfuse|blobfuse2|beegfs|seaweedfs|weed|moosefs|mfs|cvmfs2|vmhgfs-fuse|curlftpfs)"
)


def network_file_system(path: Path) -> str | None:
    """The type of the network file system that `path` (which need not exist yet) is on; None when it is local."""
    try:
        with MOUNTS_FILE.open("rb") as mounts:
            text = mounts.read(MOUNTS_BYTES_MAX)
    except OSError:
        return None
    found = file_system_type(os.path.realpath(path), text.decode(errors="surrogateescape"))
    return found if _NETWORK_TYPE.fullmatch(found) else None


def file_system_type(real_path: str, mountinfo: str) -> str:
    """The type of the mount that an absolute path without links is below, "" when no line tells (proc(5))."""
    best_length, best_type = -1, ""
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        fields = head.split(" ")
        if len(fields) < 5 or not tail:
            continue
        point = _unescape(fields[4])
        # A later line with the same mount point lies on top of the earlier one, so equal lengths win too.
        if _below(real_path, point) and len(point) >= best_length:
            best_length, best_type = len(point), tail.split(" ")[0]
    return best_type


def _below(path: str, point: str) -> bool:
    return point in ("/", path) or path.startswith(point + "/")


def _unescape(point: str) -> str:
    """Blanks, tabs, line ends and backslashes in mount points are written as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)
