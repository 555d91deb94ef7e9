"""The identity of a node: the folder `DIR/identity/` and every way it comes to be, changes or is refused.

    ca.pem       the cluster authority's certificate, the only one we trust; two while one authority replaces another
    ca.key       the key of the one that signs; on issuers alone
    ca.next.key  the key of the one that will sign; on issuers, while an authority is replaced (see `rotation`)
    node.pem     our certificate
    node.key     our key

The folder is 0700, its files 0600. It is built whole beside its place (`identity.new`, `identity.joining`) and renamed
into it, so that a crash leaves no identity or a whole one. Renewal keeps the key and replaces `node.pem` alone: one
rename, so key and certificate never disagree. A stolen key is answered by `spore revoke` and a new join.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from node.certificates import (
    AUTHORITIES_MAX,
    CertificateError,
    CertificateFacts,
    ca_pin,
    create_ca,
    create_csr,
    describe,
    describe_ca,
    issue,
    issued_by,
    key_matches,
    split_pem,
)
from node.secret_files import fsync_folder, make_private_folder, open_to_others, replace_file
from protocol.names import check_node

IDENTITY_FOLDER = "identity"
CA_CERTIFICATE, CA_KEY, CA_NEXT_KEY = "ca.pem", "ca.key", "ca.next.key"
NODE_CERTIFICATE, NODE_KEY = "node.pem", "node.key"
_NEW_FOLDER = "identity.new"  # `spore init` at work
_JOINING_FOLDER = "identity.joining"  # `spore join` at work; its key outlives a crash, so that the join can be repeated
_OLD_FOLDER = "identity.old"  # what a new join replaced, until the new one is in place


class IdentityError(Exception):
    """An identity that cannot be used or made. `reason`: missing, exists, permissions, damaged, mismatch, expired."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Identity:
    """A checked identity; made by `load`, read by the agent and the CLI. Private keys stay in their files."""

    folder: Path
    cluster: str
    node: str
    ca_pem: bytes  # every authority we trust
    authority_pem: bytes  # the one that signs, on an issuer; on others the one that signed our certificate
    certificate_pem: bytes
    facts: CertificateFacts
    issuer: bool

    @property
    def certificate_path(self) -> Path:
        return self.folder / NODE_CERTIFICATE

    @property
    def key_path(self) -> Path:
        return self.folder / NODE_KEY

    @property
    def ca_pin(self) -> str:
        """Of the authority that signs."""
        return ca_pin(self.authority_pem)

    @property
    def authorities(self) -> tuple[bytes, ...]:
        return split_pem(self.ca_pem, AUTHORITIES_MAX)

    @classmethod
    def load(cls, directory: Path, *, now: float, cluster: str | None = None, node: str | None = None) -> Identity:
        """The identity in `directory`, checked; `cluster` and `node` are what the hosts file says, if it is at hand.

        Raises IdentityError with one sentence that says what to do.
        """
        folder = directory / IDENTITY_FOLDER
        _check_folder(folder, directory)
        identity = _read(folder, directory)
        if now > identity.facts.not_after:
            raise IdentityError(
                "expired", f"our {identity.facts} has expired: run `spore join TOKEN {directory}` with a new token"
            )
        if cluster is not None and identity.cluster != cluster:
            raise IdentityError(
                "mismatch",
                f"{folder} belongs to cluster {identity.cluster!r} and the hosts file to {cluster!r}: "
                "use the hosts file of this cluster, or another folder",
            )
        if node is not None and identity.node != node:
            raise IdentityError(
                "mismatch", f"{folder} is of node {identity.node!r}, not of {node!r}: use that node's own folder"
            )
        return identity

    def renewal_csr(self) -> bytes:
        """A signing request for our next certificate, over the key we have."""
        return create_csr(self.node, _read_file(self.key_path))[1]

    def issue(self, csr_pem: bytes, node: str, *, ephemeral: bool, now: float, joined_at: int | None = None) -> bytes:
        """As an issuer: a certificate for `node` (see `certificates.issue`). Raises IdentityError on other nodes."""
        if not self.issuer:
            raise IdentityError(
                "missing", f"{self.node!r} holds no authority key: ask a host marked `issuer: true` in the hosts file"
            )
        ca_key = _read_file(self.folder / CA_KEY)
        return issue(ca_key, self.authority_pem, csr_pem, node, ephemeral=ephemeral, now=now, joined_at=joined_at)


def init_identity(directory: Path, cluster: str, node: str, *, now: float) -> Identity:
    """Begin a cluster: a new authority and the first node's certificate. Refuses a folder that has an identity.

    Raises IdentityError, NameRefused, CertificateError, OSError.
    """
    check_node(node)
    _refuse_existing(directory)
    ca_key, ca_pem = create_ca(cluster, now=now)
    key, csr = create_csr(node)
    certificate = issue(ca_key, ca_pem, csr, node, ephemeral=False, now=now)
    directory.mkdir(parents=True, exist_ok=True)
    staged = directory / _NEW_FOLDER
    make_private_folder(staged)  # perhaps left by an init that was killed: every file in it is written again
    for name, content in (
        (CA_CERTIFICATE, ca_pem),
        (CA_KEY, ca_key),
        (NODE_KEY, key),
        (NODE_CERTIFICATE, certificate),
    ):
        replace_file(staged / name, content)
    _move_into_place(staged, directory)
    return Identity.load(directory, now=now)


def begin_join(directory: Path, node: str, *, anew: bool = False) -> bytes:
    """The signing request of a join. Repeated after a crash it has the same key, so that no second use is taken.

    `anew` allows a folder that has an identity, which the join will replace (it expired or was revoked).
    """
    check_node(node)
    _refuse_existing(directory, anew=anew)
    directory.mkdir(parents=True, exist_ok=True)
    staged = directory / _JOINING_FOLDER
    make_private_folder(staged)
    key_path = staged / NODE_KEY
    with contextlib.suppress(FileNotFoundError, CertificateError):
        return create_csr(node, key_path.read_bytes())[1]
    key, csr = create_csr(node)
    replace_file(key_path, key)  # durable before it is sent: what the token bought must not be lost in a crash
    return csr


def install_identity(
    directory: Path,
    ca_pem: bytes,
    certificate_pem: bytes,
    *,
    node: str,
    pin: str,
    now: float,
    anew: bool = False,
) -> Identity:
    """End a join: check what the issuer returned against the token's pin, our key and our name, and put it in place."""
    _refuse_existing(directory, anew=anew)
    staged = directory / _JOINING_FOLDER
    _check_returned(_authorities(ca_pem), certificate_pem, node, pin, now)
    if not key_matches(_read_file(staged / NODE_KEY), certificate_pem):
        raise IdentityError("mismatch", "the issuer returned a certificate for another key: run `spore join` again")
    replace_file(staged / CA_CERTIFICATE, ca_pem)
    replace_file(staged / NODE_CERTIFICATE, certificate_pem)
    _move_into_place(staged, directory)
    return Identity.load(directory, now=now, node=node)


def replace_certificate(identity: Identity, answer_pem: bytes, *, now: float) -> Identity:
    """Take a renewed certificate, and the authorities that the issuer trusts, which follow it.

    It must be for our name and key, from an authority that both of us trust, and last as long as ours (two of one
    second do) unless another authority signed it. What is trusted is widened before, and narrowed after, our own
    certificate changes: whenever we die, it is of an authority in `ca.pem`.
    """
    certificate_pem, authorities = _split_answer(identity, answer_pem)
    signer = _check_returned(authorities, certificate_pem, identity.node, None, now)
    if not key_matches(_read_file(identity.key_path), certificate_pem):
        raise IdentityError("mismatch", "the issuer returned a certificate for another key: ask again")
    shorter = describe(certificate_pem).not_after < max(now, identity.facts.not_after)
    if shorter and signer == identity.authority_pem and authorities == identity.authorities:
        raise IdentityError("mismatch", "the issuer returned a certificate that ends before ours: ask again")
    before, path = identity.authorities, identity.folder / CA_CERTIFICATE
    trusted = tuple(dict.fromkeys((*before, *authorities)))[:AUTHORITIES_MAX]
    if trusted != before:
        replace_file(path, b"".join(trusted))
    replace_file(identity.certificate_path, certificate_pem)
    if trusted != authorities:
        replace_file(path, b"".join(authorities))
    return Identity.load(identity.folder.parent, now=now, cluster=identity.cluster, node=identity.node)


def _authorities(ca_pem: bytes) -> tuple[bytes, ...]:
    try:
        return split_pem(ca_pem, AUTHORITIES_MAX)
    except CertificateError as problem:
        raise IdentityError("damaged", f"the issuer returned something unusable: {problem}") from problem


def _split_answer(identity: Identity, answer_pem: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """A renewal's certificate and the authorities after it; an issuer of an older version sends none."""
    try:
        first, *others = split_pem(answer_pem, 1 + AUTHORITIES_MAX)
    except CertificateError as problem:
        raise IdentityError("damaged", f"the issuer returned something unusable: {problem}") from problem
    authorities = tuple(others) or identity.authorities
    known = {ca_pin(trusted) for trusted in identity.authorities}
    if not known & {ca_pin(trusted) for trusted in authorities}:
        raise IdentityError("mismatch", "the issuer trusts none of our authorities: join anew")
    return first, authorities


def _check_returned(
    authorities: tuple[bytes, ...], certificate_pem: bytes, node: str, pin: str | None, now: float
) -> bytes:
    """Check what an issuer returned; which of the authorities signed it. With a `pin`, that one must have it."""
    try:
        facts = describe(certificate_pem)
        signer = next((ca for ca in authorities if issued_by(certificate_pem, ca)), None)
        pins = {ca_pin(ca): describe_ca(ca) for ca in authorities}
    except CertificateError as problem:
        raise IdentityError("damaged", f"the issuer returned something unusable: {problem}") from problem
    if pin is not None and pin not in pins:
        raise IdentityError("mismatch", "the issuer's authority is not the one pinned: ask for a new token")
    if signer is None or facts.cluster != describe_ca(signer).cluster or (pin is not None and ca_pin(signer) != pin):
        raise IdentityError("mismatch", "the issuer returned a certificate its authority did not sign: ask again")
    if facts.node != node:
        raise IdentityError("mismatch", f"the issuer returned a certificate for {facts.node!r}, not for {node!r}")
    if now > facts.not_after:
        raise IdentityError("expired", f"the issuer returned an expired {facts}: compare the clocks of both hosts")
    return signer


def _refuse_existing(directory: Path, *, anew: bool = False) -> None:
    folder = directory / IDENTITY_FOLDER
    if not folder.exists() or not any(folder.iterdir()):
        return
    if (folder / CA_KEY).exists():
        raise IdentityError(
            "exists", f"{folder} holds a cluster's authority key and is never replaced: use another folder"
        )
    if not anew:
        raise IdentityError(
            "exists", f"{directory} already has an identity: use another folder, or remove {folder} to join anew"
        )


def _move_into_place(staged: Path, directory: Path) -> None:
    """Rename a whole staged folder to `identity`. A replaced one is kept aside until the new one is there."""
    place, aside = directory / IDENTITY_FOLDER, directory / _OLD_FOLDER
    if place.exists() and any(place.iterdir()):
        if aside.exists():
            shutil.rmtree(aside)
        place.rename(aside)
    # A crash here leaves no `identity`; `identity.joining` still has the key, and the same join can be asked again.
    staged.rename(place)
    fsync_folder(directory)
    if aside.exists():
        shutil.rmtree(aside)


def _check_folder(folder: Path, directory: Path) -> None:
    try:
        if open_to_others(folder):
            raise IdentityError("permissions", f"{folder} is open to other users: run `chmod 700 {folder}`")
        for name in (NODE_KEY, CA_KEY, CA_NEXT_KEY):
            path = folder / name
            if path.exists() and open_to_others(path):
                raise IdentityError("permissions", f"{path} is open to other users: run `chmod 600 {path}`")
    except FileNotFoundError:
        raise IdentityError(
            "missing",
            f"{directory} has no identity: run `spore init {directory}` to begin a cluster, "
            f"or `spore join TOKEN {directory}` to enter one",
        ) from None
    except OSError as problem:
        raise _unreadable(folder, problem) from problem


def _read(folder: Path, directory: Path) -> Identity:
    ca_pem = _read_file(folder / CA_CERTIFICATE)
    certificate_pem, key_pem = _read_file(folder / NODE_CERTIFICATE), _read_file(folder / NODE_KEY)
    issuer = (folder / CA_KEY).exists()
    try:
        authorities, facts = split_pem(ca_pem, AUTHORITIES_MAX), describe(certificate_pem)
        clusters = {describe_ca(ca).cluster for ca in authorities}
        whole = key_matches(key_pem, certificate_pem)
        ours = next((ca for ca in authorities if issued_by(certificate_pem, ca)), None)
        signing = (
            next((ca for ca in authorities if key_matches(_read_file(folder / CA_KEY), ca)), None) if issuer else ours
        )
    except CertificateError as problem:
        raise IdentityError(
            "damaged", f"{folder} is damaged, {problem}: restore it, or run `spore join TOKEN {directory}` anew"
        ) from problem
    if not whole:
        raise IdentityError(
            "mismatch", f"{folder / NODE_KEY} is not the key of {NODE_CERTIFICATE}: restore the right one"
        )
    if issuer and signing is None:
        raise IdentityError("mismatch", f"{folder / CA_KEY} is not the key of {CA_CERTIFICATE}: restore the right one")
    if ours is None or signing is None or clusters != {facts.cluster}:
        raise IdentityError(
            "mismatch",
            f"{NODE_CERTIFICATE} in {folder} is not of the authority in {CA_CERTIFICATE}: restore the right one",
        )
    return Identity(folder, facts.cluster, facts.node, ca_pem, signing, certificate_pem, facts, issuer)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise IdentityError("damaged", f"{path} is missing: restore it, or join anew with `spore join`") from None
    except OSError as problem:
        raise _unreadable(path, problem) from problem


def _unreadable(path: Path, problem: OSError) -> IdentityError:
    return IdentityError(
        "permissions", f"{path} cannot be read ({problem.strerror}): run spore as the user who owns it"
    )
