"""Build the bundle that hosts without internet are installed from: our wheel, every dependency, and their hashes.

    python deploy/bundle.py [--python 3.11 …] [--platform manylinux_2_28_x86_64 …] [--wheels FOLDER]

The result is `dist/spore-<version>-<hash>.tar.gz` with `wheels/` and a `requirements.txt` that pip checks with
`--require-hashes`; `dist/spore-bundle.tar.gz` leads to the newest. The hash is over all wheels: the same contents have
the same name. Without options it is for machines like this one.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEWEST = "spore-bundle.tar.gz"
PACKAGES = ("protocol", "storage", "node", "simulations")


def main() -> None:
    parser = argparse.ArgumentParser(description="build the bundle for hosts without internet")
    parser.add_argument("--python", action="append", default=[], help="a Python of the hosts, such as 3.11")
    parser.add_argument("--platform", action="append", default=[], help="a platform of the hosts, as pip names them")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--wheels", type=Path, help="take dependencies from this folder, not from an index")
    parser.add_argument("--source", type=Path, default=ROOT, help="the project to build")
    options = parser.parse_args()
    print(build(options.source, options.out, options.python, options.platform, options.wheels))


def build(
    source: Path, out: Path, pythons: Sequence[str] = (), platforms: Sequence[str] = (), links: Path | None = None
) -> Path:
    """The path of the bundle, made anew."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        wheels = Path(folder) / "wheels"
        ours = _our_wheel(source, Path(folder) / "ours")
        for python in pythons or [""]:
            _download(ours, wheels, python, platforms, links)
        shutil.copy(ours, wheels)  # pip leaves a copy when it resolves; this one is the one we built
        hashes = {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(wheels.iterdir())}
        release = f"{ours.name.split('-')[1]}-{_hash(hashes)}"
        (Path(folder) / "requirements.txt").write_text(requirements(hashes))
        bundle = out / f"spore-{release}.tar.gz"
        _pack(Path(folder), bundle)
    newest = out / NEWEST
    newest.unlink(missing_ok=True)
    newest.symlink_to(bundle.name)
    return bundle


def _our_wheel(source: Path, folder: Path) -> Path:
    """Built from a copy: what an earlier build left beside the source would get into the wheel."""
    copy = folder / "source"
    for package in PACKAGES:
        shutil.copytree(source / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(source / name, copy)
    _pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(copy))
    (wheel,) = folder.glob("spore_agent-*.whl")
    return wheel


def _download(ours: Path, wheels: Path, python: str, platforms: Sequence[str], links: Path | None) -> None:
    """What our wheel needs, for one Python and these platforms."""
    target = ["--python-version", python, "--implementation", "cp"] if python else []
    target += [word for platform in platforms for word in ("--platform", platform)]
    target += ["--no-index", "--find-links", str(links)] if links else []
    _pip("download", "--only-binary=:all:", "--dest", str(wheels), *target, str(ours))


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    # The same sources make the same wheel: its entries bear one time, the earliest that a zip file can hold.
    env = {**os.environ, "SOURCE_DATE_EPOCH": "315532800"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")


def requirements(hashes: dict[str, str]) -> str:
    """A line for each distribution: its version, and the hash of every wheel of it (for each Python and platform)."""
    found: dict[str, list[str]] = {}
    for name, digest in sorted(hashes.items()):
        distribution, version = name.split("-")[:2]
        line = f"{re.sub('[-_.]+', '-', distribution).lower()}=={version}"
        found.setdefault(line, []).append(f"--hash=sha256:{digest}")
    return "".join(f"{line} {' '.join(listed)}\n" for line, listed in found.items())


def _hash(hashes: dict[str, str]) -> str:
    """Of what the wheels hold: ten digits tell the few releases of a fleet apart."""
    return sha256(requirements(hashes).encode()).hexdigest()[:10]


def _pack(folder: Path, bundle: Path) -> None:
    """One archive, the same for the same wheels: no owners, no times."""
    making = bundle.with_suffix(".making")
    with (
        making.open("wb") as raw,
        gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for path in [folder / "requirements.txt", *sorted((folder / "wheels").iterdir())]:
            archive.add(path, str(path.relative_to(folder)), filter=_without_owner)
    making.rename(bundle)


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = "root"
    entry.mode = 0o644
    return entry


if __name__ == "__main__":
    main()
