"""What a host must be before an agent is installed on it: each failure one sentence on standard output, exit code 1.

    python3 - host JSON      this host alone; marks its shared root, if it has one
    python3 - listen JSON    listen at the agent's port until `end`, where no agent does
    python3 - peers JSON     reach the peers' ports; see the marks of mates in the shared root
    python3 - end JSON       end listening, remove the mark

Sent to hosts by Ansible. It needs nothing but Python, and says itself when that is too old.
"""

import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

LISTEN_SECONDS = 300  # by then every host of a slow fleet has dialled; an interrupted play leaves no listener behind
INSTALL_BYTES = 600 << 20  # a release is 260 MB, and the one before stays
PEERS_MAX = 16  # dialled from each host: a closed port shows at any of them
END = b"spore-preflight-end"


def host(facts):
    """Problems of this host alone."""
    found = []
    if sys.version_info < (3, 11):  # noqa: UP036 - this file is run by whatever Python a host has
        found.append(f"Python {platform.python_version()} is too old: install Python 3.11 or later")
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            found.append(f"Python's module {module} is missing: install the package python3-venv")
    found += _clock(facts) + _space(facts) + _name(facts) + _root(facts)
    return found


def _clock(facts):
    offset = time.time() - facts["now"]
    if abs(offset) <= facts["clock_offset_seconds_max"]:
        return []
    return [f"the clock is {offset:.0f} s off that of the deploying machine: set it, and run a time service"]


def _space(facts):
    found = []
    free = shutil.disk_usage(_existing(facts["prefix"])).free
    if free < INSTALL_BYTES:
        found.append(f"{facts['prefix']} has {free >> 20} MB free, an installation needs {INSTALL_BYTES >> 20}")
    usage = shutil.disk_usage(_existing(facts["root"]))
    used = 100.0 * usage.used / (usage.used + usage.free)
    if usage.free < facts["min_free_bytes"]:
        found.append(
            f"{facts['root']} has {usage.free >> 20} MB free, below min_free_bytes, which is "
            f"{facts['min_free_bytes'] >> 20} MB: free space, or lower it in the host's entry"
        )
    elif used > facts["disk_cap_percent"]:
        found.append(
            f"the disk of {facts['root']} is {used:.0f}% full, above the cap of {facts['disk_cap_percent']:g}%: "
            "it could hold nothing for others; free space, raise max_disk_usage_percent, or say excluded: true"
        )
    return [] if facts["excluded"] else found


def _name(facts):
    """An identity that is there already must be this node's."""
    path = os.path.join(facts["dir"], "identity", "node.pem")
    if not os.path.exists(path) or facts["join_anew"] or shutil.which("openssl") is None:
        return []
    asking = ["openssl", "x509", "-noout", "-subject", "-nameopt", "multiline", "-in", path]
    subject = subprocess.run(asking, stdout=subprocess.PIPE, check=False).stdout.decode()
    names = [line.split("=", 1)[1].strip() for line in subject.splitlines() if "commonName" in line]
    if facts["node"] in names:
        return []
    return [f"{path} holds the identity of {names}, not of {facts['node']}: is this the right machine?"]


def _root(facts):
    """The node's folder is local; a shared root is there and can be written."""
    found = []
    if _file_system(facts["dir"]).startswith(("nfs", "cifs", "smb", "fuse.sshfs", "ceph", "lustre", "9p")):
        found.append(f"{facts['dir']} lies on a network file system: the node's folder must be on a local disk")
    if facts["mates"]:
        if not os.path.isdir(facts["root"]):
            return [*found, f"{facts['root']} does not exist: mount the folder shared with {', '.join(facts['mates'])}"]
        try:
            with open(_mark(facts, facts["node"]), "w") as mark:
                mark.write(facts["node"])
        except OSError as problem:
            found.append(f"{facts['root']} cannot be written: {problem}")
    return found


def listen(facts):
    """Accept and close, until somebody on this machine says that it is over."""
    with socket.socket(socket.AF_INET) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(("0.0.0.0", facts["port"]))  # noqa: S104 - peers are to reach it
        except OSError:
            if not os.path.exists(os.path.join(facts["prefix"], "current")):
                return [f"port {facts['port']} is used by another program: stop it, or choose another port"]
            return []
        door.listen(64)
        with open(_listening(facts), "w"):
            pass
        ends = time.monotonic() + LISTEN_SECONDS
        while time.monotonic() < ends:
            door.settimeout(max(0.1, ends - time.monotonic()))
            try:
                caller, address = door.accept()
            except OSError:
                break
            with caller:
                caller.settimeout(1)
                if address[0] == "127.0.0.1" and _read(caller) == END:
                    break
    return []


def _read(caller):
    try:
        return caller.recv(64)
    except OSError:
        return b""


def peers(facts):
    """Which peers cannot be reached from here, and which mates do not share our root."""
    addresses = sorted(facts["peers"].items())
    first = next((i for i, (name, _) in enumerate(addresses) if name > facts["node"]), 0)
    chosen = [pair for pair in addresses[first:] + addresses[:first] if pair[0] != facts["node"] and pair[1]]
    with ThreadPoolExecutor(PEERS_MAX) as pool:
        reached = pool.map(lambda pair: _dial(pair, facts["seconds"]), chosen[:PEERS_MAX])
        found = [problem for problem in reached if problem]
    for mate in facts["mates"]:
        if mate in facts["peers"] and not os.path.exists(_mark(facts, mate)):
            found.append(f"{facts['root']} is not the folder that {mate} has there, though nfs_sharing_groups says so")
    return found


def _dial(pair, seconds):
    """The port may open a moment later than the first try: its host is asked at the same time as we are."""
    name, address = pair
    where, _, port = address.rpartition(":")
    ends = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((where.strip("[]"), int(port)), timeout=seconds).close()
            return ""
        except OSError as problem:
            if time.monotonic() + 0.5 > ends:
                return f"{name} does not answer at {address} ({problem}): open that port, or correct its address"
            time.sleep(0.5)


def end(facts):
    if os.path.exists(_listening(facts)):
        _hush(facts)
    if facts["mates"] and os.path.exists(_mark(facts, facts["node"])):
        os.remove(_mark(facts, facts["node"]))
    return []


def _hush(facts):
    os.remove(_listening(facts))
    try:
        with socket.create_connection(("127.0.0.1", facts["port"]), timeout=1) as door:
            door.sendall(END)
    except OSError:
        pass


def _listening(facts):
    """Says that it is us who listen at this port, and no agent."""
    return f"/run/spore-preflight-{facts['port']}"


def _mark(facts, node):
    return os.path.join(facts["root"], ".spore-preflight-" + node)


def _existing(path):
    """The path, or what is above it and there."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _file_system(path):
    """The type of the file system on which a path lies or will lie."""
    path, best, kind = os.path.realpath(_existing(path)), "", ""
    with open("/proc/self/mounts") as mounts:
        for line in mounts:
            place, name = line.split()[1:3]
            if (path + "/").startswith(place.rstrip("/") + "/") and len(place) >= len(best):
                best, kind = place, name
    return kind


if __name__ == "__main__":
    problems = {"host": host, "listen": listen, "peers": peers, "end": end}[sys.argv[1]](json.loads(sys.argv[2]))
    print("; ".join(problems))
    sys.exit(1 if problems else 0)
