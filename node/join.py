"""`spore join`: from a token and an empty folder to a member of the cluster. Blocking.

The secret must reach nobody but the node that made the token. So, for each address in the token:

1. fetch the authority's certificate from whoever answers, sending nothing, and compare it with the pin;
2. connect again, trusting that authority and no other, and the issuing node and no other (`pinned_join_context`);
3. only then send the secret and the signing request; the key never leaves this machine.

What came back is checked against pin, key and name, and put in place: the hosts file first, the identity last, in one
rename. In between, a manifest that lies there forgets the cluster (see storage/rejoining.py): no identity ever stands
beside rows from before its join. A join cut short anywhere can be repeated with the same token, and takes no second use
of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from node.admission import PeerRefused
from node.asking import Answered, AskError, ask
from node.certificates import CertificateError
from node.identity import Identity, IdentityError, begin_join, install_identity
from node.secret_files import replace_file
from node.tls import pinned_join_context, unverified_join_context
from node.tokens import Token, TokenError, parse_token
from storage.migrations import SchemaTooNew
from storage.rejoining import forget_cluster

HOSTS_FILE, MANIFEST, LOCK = "distributed_hosts.yaml", "manifest.db", "lock"
HOSTS_FILE_MODE = 0o644  # no secret: people and Ansible read it
REPLACED_SUFFIX = ".before-join"  # what the folder had, when it differs from what the issuer sent
SEEDS_MAX = 64  # addresses in an answer; a node needs one that works


class JoinError(Exception):
    """A join that did not succeed; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What a join brought; made here, read by the CLI."""

    identity: Identity
    hosts_file: Path
    seeds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Granted:
    ca_pem: bytes
    certificate_pem: bytes
    hosts_file: bytes
    seeds: tuple[str, ...]


def join_cluster(token: str, directory: Path, node: str, *, clock: Callable[[], float], anew: bool = False) -> Joined:
    """Join with the token in `token` as `node`. `anew` replaces an identity that expired or was revoked.

    Raises JoinError; a folder that has an identity, and a name that is none, are refused before anything is sent.
    """
    try:
        parsed = parse_token(token)
        if clock() > parsed.expires_at:
            raise JoinError("the token has expired: make a new one with `spore token` (or set this machine's clock)")
        csr = begin_join(directory, node, anew=anew)
        with _stopped(directory):
            granted = _ask_issuer(parsed, node, csr, clock)
            hosts_file = _write_hosts_file(directory, granted.hosts_file)
            forget_cluster(directory / MANIFEST)
            identity = install_identity(
                directory,
                granted.ca_pem,
                granted.certificate_pem,
                node=node,
                pin=parsed.ca_pin,
                now=clock(),
                anew=anew,
            )
    except sqlite3.Error as problem:
        raise JoinError(f"{directory / MANIFEST} cannot be used ({problem}): move it aside and join again") from problem
    except (TokenError, IdentityError, SchemaTooNew, ValueError) as problem:
        raise JoinError(str(problem)) from problem
    except OSError as problem:
        raise JoinError(
            f"{directory} cannot be written ({problem.strerror or problem}): join as its owner"
        ) from problem
    return Joined(identity, hosts_file, granted.seeds)


@contextmanager
def _stopped(directory: Path) -> Iterator[None]:
    """Hold the lock that a running agent holds: its manifest must not change under it."""
    with (directory / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JoinError(f"an agent runs on {directory}: stop it, join, and start it again") from None
        yield


def _ask_issuer(token: Token, node: str, csr: bytes, clock: Callable[[], float]) -> _Granted:
    """Try the token's addresses in turn; a refusal by the issuer itself is final."""
    problems = []
    for address in token.addresses:
        try:
            return _ask_at(address, token, node, csr, clock)
        except AskError as problem:
            problems.append(str(problem))
    raise JoinError("cannot join: " + "; ".join(problems))


def _ask_at(address: str, token: Token, node: str, csr: bytes, clock: Callable[[], float]) -> _Granted:
    fetched = ask(address, unverified_join_context(), "GET", "/v1/ca")
    if fetched.status != 200:
        raise AskError(f"{address} is no issuer: it answered {fetched.status}")
    try:
        context = pinned_join_context(fetched.body, token.ca_pin, token.issuer, clock)
    except PeerRefused as refusal:
        raise AskError(f"{address}: {refusal.message}", distrusted=True) from refusal
    except (CertificateError, UnicodeDecodeError) as problem:
        raise AskError(f"{address} is no issuer: {problem}") from problem
    question = {"token_id": token.token_id, "secret": token.secret.hex(), "node": node, "csr": csr.decode()}
    return _read_grant(address, ask(address, context, "POST", "/v1/join", json.dumps(question).encode()))


def _read_grant(address: str, answered: Answered) -> _Granted:
    try:
        fields = json.loads(answered.body)
        if answered.status != 200:
            raise JoinError(f"the issuer at {address} refused: {str(fields['error'])[:500]}")
        seeds = tuple(str(seed)[:300] for seed in fields["seeds"][:SEEDS_MAX])
        ca, certificate, hosts_file = (fields[name].encode() for name in ("ca", "certificate", "hosts_file"))
        return _Granted(ca, certificate, hosts_file, seeds)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise JoinError(
            f"the answer of {address} ({answered.status}) cannot be read: use the same version of spore"
        ) from problem


def _write_hosts_file(directory: Path, content: bytes) -> Path:
    """Put the fleet's hosts file in place, whole or not at all; another one that was there is kept beside it."""
    path = directory / HOSTS_FILE
    if path.exists():
        if path.read_bytes() == content:
            return path
        os.replace(path, path.with_name(HOSTS_FILE + REPLACED_SUFFIX))
    replace_file(path, content)
    path.chmod(HOSTS_FILE_MODE)
    return path
