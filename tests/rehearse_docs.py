"""Bring docs/simulation.md up to date: run each command in it as printed, and put its output below it.

python tests/rehearse_docs.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "simulation.md"
PICTURE = "rehearsal.svg"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    return [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]


def printed(block: str, folder: Path, environment: dict[str, str]) -> str:
    """The block anew: its commands, each with what it prints now."""
    lines = []
    for command in commands(block):
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode not in (0, 1) or done.stderr:
            sys.exit(f"{command}: {done.stderr}")
        lines += [f"$ {command}", *done.stdout.splitlines()]
    return "```console\n" + "\n".join(lines) + "\n```"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spore = folder / "bin" / "spore"
        spore.parent.mkdir()
        spore.write_text(f'#!/bin/sh\nexec {sys.executable} -m node.cli "$@"\n')
        spore.chmod(0o755)
        shutil.copy(ROOT / "distributed_hosts.yaml", folder)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{spore.parent}:{os.environ['PATH']}"}
        PAGE.write_text(BLOCK.sub(lambda found: printed(found.group(1), folder, environment), PAGE.read_text()))
        shutil.copy(folder / PICTURE, ROOT / "docs" / "images" / PICTURE)


if __name__ == "__main__":
    main()
