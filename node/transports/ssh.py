"""SSH for transports: one configuration file for each use, with the host's own key pinned and nothing else believed.

The file names the host, so that arguments hold no option and no shell is needed; the user's own configuration, agents,
passwords and known hosts play no part.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from protocol.fleet import Host, Ssh, split_address

ALIAS = "spore-peer"  # the name of the host within the file, whatever its node and address are called
CONNECT_SECONDS = 10
ALIVE_SECONDS = 10
CONFIG, KNOWN_HOSTS = "ssh_config", "known_hosts"
_KEY = re.compile(r"(ssh-ed25519|ecdsa-sha2-nistp(?:256|384|521)|ssh-rsa) [A-Za-z0-9+/=]{40,2000}")


@dataclass(frozen=True, slots=True)
class Reach:
    """How a host is reached over SSH."""

    user: str | None
    host: str
    port: int
    key: Path
    host_key: str
    ssh: Ssh


def why_not(host: Host, folder: Path) -> str:
    """Why SSH is not tried for a host; "" when it is."""
    if host.ssh is None:
        return "no SSH entry in the hosts file"
    if host.ssh.host_key is None:
        return "its SSH entry has no host_key to pin"
    try:
        reach(host, folder)
    except ValueError as problem:
        return str(problem)
    return ""


def reach(host: Host, folder: Path) -> Reach:
    """How to reach it; relative keys lie in the node's folder. Raises ValueError with a sentence."""
    ssh = host.ssh
    if ssh is None or ssh.host_key is None:
        raise ValueError("its SSH entry has no host_key to pin")
    pinned = _KEY.match(ssh.host_key)
    if pinned is None:
        raise ValueError("host_key is not a public key such as: ssh-ed25519 AAAA…")
    address = ssh.host or (split_address(host.dial_address)[0] if host.dial_address else "")
    if not address:
        raise ValueError("no address is known for SSH; state ssh.host")
    if ssh.key is None:
        raise ValueError("its SSH entry names no key")
    key = folder / Path(ssh.key).expanduser()
    if not key.is_file() or '"' in str(key):
        raise ValueError(f"there is no usable key file {key}")
    return Reach(ssh.user, address, ssh.port, key, pinned[0], ssh)


def configure(target: Reach, folder: Path) -> None:
    """Write the two files into a folder of one order; programs are started there with `-F ssh_config`."""
    (folder / KNOWN_HOSTS).write_text(f"{ALIAS} {target.host_key}\n")
    user = [f"User {target.user}"] if target.user else []
    lines = [
        f"Host {ALIAS}",
        f"HostName {target.host}",
        f"Port {target.port}",
        *user,
        f'IdentityFile "{target.key}"',
        "IdentitiesOnly yes",
        f"HostKeyAlias {ALIAS}",
        f"UserKnownHostsFile {KNOWN_HOSTS}",
        "GlobalKnownHostsFile /dev/null",
        "StrictHostKeyChecking yes",
        "UpdateHostKeys no",
        "BatchMode yes",
        "PreferredAuthentications publickey",
        f"ConnectTimeout {CONNECT_SECONDS}",
        "ConnectionAttempts 1",
        f"ServerAliveInterval {ALIVE_SECONDS}",
        "ServerAliveCountMax 3",
        "ClearAllForwardings yes",
        "ForwardAgent no",
        "PermitLocalCommand no",
        "LogLevel ERROR",
    ]
    (folder / CONFIG).write_text("\n".join(lines) + "\n")
