"""The base root that every test host is an overlay on: a minimal Debian or Ubuntu with systemd and sshd, made once.

It is made by mmdebstrap from this machine's own package sources and kept in a cache under the hash of its recipe, so
that a changed recipe is a new root. It is built beside its place and renamed, under a lock: two runs at once build it
once, and a killed build leaves nothing that looks whole.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path

PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "openssh-server",
    "python3",
    "python3-venv",
    "iproute2",
    "ca-certificates",
    "logrotate",
    "sudo",
)
# A host is a namespace: it has no devices, no consoles, no time of its own, and nobody waits for its timers.
MASKED = (
    "systemd-udevd.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udev-trigger.service",
    "systemd-modules-load.service",
    "systemd-sysctl.service",
    "systemd-timesyncd.service",
    "systemd-remount-fs.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
    "console-getty.service",
    "getty.target",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "logrotate.timer",
    "systemd-tmpfiles-clean.timer",
)
CLEANED = ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")


def suite() -> str:
    """The release of this machine: its mirrors are known to work."""
    return platform.freedesktop_os_release()["VERSION_CODENAME"]


def folder() -> Path:
    """Where the root of this recipe lies once it is made."""
    recipe = sha256(repr((suite(), platform.machine(), PACKAGES, MASKED, CLEANED)).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("SPORE_FLEET_CACHE") or Path.home() / ".cache" / "spore-fleet")
    return cache / f"base-{recipe}"


def root() -> Path:
    """The base root, made first where it is missing (about a minute)."""
    place = folder()
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for old in place.parent.glob("base-*"):
            if old != place:
                shutil.rmtree(old)
        if not place.exists():
            _make(place)
    return place


def _make(place: Path) -> None:
    for left in place.parent.glob("making-*"):
        shutil.rmtree(left)
    making = Path(tempfile.mkdtemp(prefix="making-", dir=place.parent))
    made = making / "root"
    subprocess.run(
        ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        + [f"--aptopt={line}" for line in _apt_options()]
        + ["--dpkgopt=path-exclude=/usr/share/doc/*", suite(), str(made), *_sources()],
        check=True,
    )
    for cleaned in CLEANED:
        shutil.rmtree(made / cleaned, ignore_errors=True)
        (made / cleaned).mkdir(parents=True)
    for unit in MASKED:
        (made / "etc/systemd/system" / unit).unlink(missing_ok=True)
        (made / "etc/systemd/system" / unit).symlink_to("/dev/null")
    for key in (made / "etc/ssh").glob("ssh_host_*"):
        key.unlink()  # every host brings its own
    (made / "etc/systemd/journald.conf.d").mkdir()
    (made / "etc/systemd/journald.conf.d/test.conf").write_text("[Journal]\nRateLimitBurst=0\n")
    made.rename(place)
    making.rmdir()


def _sources() -> list[str]:
    """This machine's own sources of its distribution; mmdebstrap knows the usual ones where there are none."""
    found = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    names = ("debian.sources", "ubuntu.sources", "sources.list")
    return [str(path) for path in found if path.name in names and path.is_file() and path.stat().st_size]


def _apt_options() -> list[str]:
    """How this machine reaches its mirrors: proxies, certificates, dates that are not checked."""
    dump = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True).stdout
    return [line for line in dump.splitlines() if line.startswith(("Acquire::Check-", "Acquire::http"))]


if __name__ == "__main__":
    print(root())
