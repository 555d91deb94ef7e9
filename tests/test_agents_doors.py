"""The one port of a running agent: who fetches what, who gets nothing, and certificates that are renewed under way."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.identity import Identity, begin_join, init_identity, install_identity
from node.local_fleet import LocalFleet
from tests.agents import GENEROUS_SECONDS, durable, logged, process_id, running, started, tool, written

pytestmark = pytest.mark.processes
DAY_SECONDS = 86_400
CONTENT = os.urandom((9 << 20) + 1)


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    with running() as made:
        written(made, "a", "models/large.pth", CONTENT)
        durable(made, "a", "model/models/large.pth")
        yield made


@pytest.fixture(scope="module")
def digest(fleet: LocalFleet) -> str:
    return str(durable(fleet, "a", "model/models/large.pth")["digest"])


def certificate(fleet: LocalFleet, node: str) -> tuple[Path, Path]:
    folder = fleet.nodes[node].folder / "identity"
    return folder / "node.pem", folder / "node.key"


def foreign(folder: Path) -> tuple[Path, Path]:
    """A certificate for node c of another cluster with the same name."""
    issuer = init_identity(folder / "issuer", "demo", "a", now=time.time())
    request = begin_join(folder / "c", "c")
    pem = issuer.issue(request, "c", ephemeral=False, now=time.time())
    made = install_identity(folder / "c", issuer.ca_pem, pem, node="c", pin=issuer.ca_pin, now=time.time())
    return made.certificate_path, made.key_path


def curl(fleet: LocalFleet, digest: str, *options: object, scheme: str = "https") -> subprocess.CompletedProcess[bytes]:
    port = fleet.nodes["b"].port
    told = ["--silent", "--show-error", "--noproxy", "*", "--max-time", "60", "--resolve", f"b:{port}:127.0.0.1"]
    url = f"{scheme}://b:{port}/v1/blob/{digest}"
    return subprocess.run(
        [tool("curl"), *told, *map(str, options), url], capture_output=True, timeout=GENEROUS_SECONDS, check=False
    )


def as_node(fleet: LocalFleet, node: str = "c") -> list[object]:
    pem, key = certificate(fleet, node)
    return ["--cacert", fleet.nodes[node].folder / "identity/ca.pem", "--cert", pem, "--key", key]


def test_curl_fetches_a_blob_by_its_digest_whole_and_by_ranges(fleet: LocalFleet, digest: str) -> None:
    whole = curl(fleet, digest, *as_node(fleet))
    assert (whole.stderr, hashlib.sha256(whole.stdout).digest()) == (b"", hashlib.sha256(CONTENT).digest())
    for first, last in ((0, 0), (1_000_000, 3_999_999), (9 << 20, 9 << 20)):
        part = curl(fleet, digest, *as_node(fleet), "--range", f"{first}-{last}")
        assert part.stdout == CONTENT[first : last + 1]
    unknown = curl(fleet, "0" * 64, *as_node(fleet), "--fail")
    assert (unknown.returncode != 0, unknown.stdout) == (True, b"")


def test_aria2c_fetches_a_blob_over_several_connections(fleet: LocalFleet, digest: str, tmp_path: Path) -> None:
    pem, key = certificate(fleet, "c")
    options = [
        "--no-conf",
        "--no-netrc",
        "--max-connection-per-server=4",
        "--split=4",
        "--min-split-size=1M",
        "--check-certificate=false",  # it compares host names, and nodes have none for 127.0.0.1
        f"--certificate={pem}",
        f"--private-key={key}",
        f"--dir={tmp_path}",
        "--out=fetched",
    ]
    url = f"https://127.0.0.1:{fleet.nodes['b'].port}/v1/blob/{digest}"
    done = subprocess.run([tool("aria2c"), *options, url], capture_output=True, timeout=GENEROUS_SECONDS, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")
    assert (tmp_path / "fetched").read_bytes() == CONTENT


def test_without_a_certificate_of_the_cluster_nothing_is_had(fleet: LocalFleet, digest: str, tmp_path: Path) -> None:
    authority = ["--cacert", fleet.nodes["c"].folder / "identity/ca.pem"]
    pem, key = foreign(tmp_path)
    for how, options in {"anonymous": authority, "foreign": [*authority, "--cert", pem, "--key", key]}.items():
        refused = curl(fleet, digest, *options)
        assert (how, refused.returncode != 0, refused.stdout) == (how, True, b"")
    plain = curl(fleet, digest, scheme="http")
    assert (plain.returncode != 0, plain.stdout) == (True, b"")
    assert "Traceback" not in fleet.nodes["b"].log.read_text()
    assert curl(fleet, digest, *as_node(fleet), "--range", "0-9").stdout == CONTENT[:10]  # and it goes on


def test_plain_bytes_are_answered_by_nothing(fleet: LocalFleet) -> None:
    for begin in (b"GET / HTTP/1.1\r\nHost: b\r\n\r\n", b"SSH-2.0-OpenSSH_9.0\r\n", os.urandom(4_096)):
        with socket.create_connection(("127.0.0.1", fleet.nodes["b"].port), timeout=GENEROUS_SECONDS) as raw:
            answer = b""
            with contextlib.suppress(OSError):  # it may be closed before all is sent, or read
                raw.sendall(begin)
                raw.shutdown(socket.SHUT_WR)
                answer = raw.recv(100)
            assert answer == b""


def test_a_certificate_that_is_due_is_renewed_without_a_restart(fleet: LocalFleet) -> None:
    """Two thirds of its 90 days are over when the agent starts; the new one is shown to whoever connects next."""
    assert fleet.terminate("c") == 0
    identity = Identity.load(fleet.nodes["c"].folder, now=time.time())
    issuer = Identity.load(fleet.nodes["a"].folder, now=time.time())
    then = time.time() - 61 * DAY_SECONDS
    old = issuer.issue(identity.renewal_csr(), "c", ephemeral=False, now=then, joined_at=int(then))
    identity.certificate_path.write_bytes(old)
    started(fleet, "c")
    running_as = process_id(fleet, "c")
    logged(fleet, "c", "renewed")
    fleet.until(lambda: identity.certificate_path.read_bytes() != old, "the file is replaced", GENEROUS_SECONDS)
    renewed = identity.certificate_path.read_text()
    assert _shown(fleet, "c") == ssl.PEM_cert_to_DER_cert(renewed[: renewed.index("-----END") + 25])
    assert process_id(fleet, "c") == running_as
    fleet.until(fleet.meshed, "its sessions stand", GENEROUS_SECONDS)


def _shown(fleet: LocalFleet, node: str) -> bytes | None:
    """The certificate that a node shows to a new connection."""
    pem, key = certificate(fleet, "b")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(fleet.nodes["b"].folder / "identity/ca.pem")
    context.load_cert_chain(pem, key)
    address = ("127.0.0.1", fleet.nodes[node].port)
    with socket.create_connection(address, timeout=GENEROUS_SECONDS) as raw, context.wrap_socket(raw) as wrapped:
        return wrapped.getpeercert(binary_form=True)
