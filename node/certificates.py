"""Certificates: the one module that knows the `cryptography` package.

A cluster has one certificate authority, an ECDSA P-256 key of its own whose certificate names the cluster. It signs
one certificate per node. The issuer decides every name in it; what a request asks for is ignored. A certificate says:

- CN = the node id, OU = `persistent` or `ephemeral`,
- the URI `spore://<cluster>/<node>`, which is what nodes check of each other,
- the URI `spore-joined:<unix seconds>`: when the node was admitted. Renewal carries it forward unchanged, so that a
  node that renews after it was revoked, at an issuer that has not heard of it yet, is still revoked,
- the node id as DNS name where it is one, for tools such as curl.

All certificates and keys enter and leave as PEM bytes; times are unix seconds and arguments.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.names import NameRefused, check_node

DAY_SECONDS = 24 * 3600
AUTHORITY_SECONDS = 3650 * DAY_SECONDS  # replacing an authority means joining every node anew: rarely
PERSISTENT_SECONDS = 90 * DAY_SECONDS  # shorter than the 120 days tombstones live: who is away longer joins anew
EPHEMERAL_SECONDS = 7 * DAY_SECONDS  # a rented machine is forgotten within a week of its end
BACKDATED_SECONDS = 15 * 60  # hosts' clocks differ: a jump of ten minutes back must not make new certificates invalid
CLUSTER_CHARACTERS_MAX = 64  # X.509 bounds a common name to 64
REQUEST_BYTES_MAX = 16 << 10  # a P-256 request is 0.5 kB; a parser is not handed more than it can need
CERTIFICATE_BYTES_MAX = 16 << 10  # a node's certificate is 1 kB

AUTHORITIES_MAX = 2  # the one in use, and the one that replaces it or was replaced by it

_PEM_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_NODE_SCHEME = "spore://"
_JOINED_SCHEME = "spore-joined:"
_EPHEMERAL, _PERSISTENT = "ephemeral", "persistent"
_DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")


class CertificateError(ValueError):
    """A key, request or certificate that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What a node's certificate says; made here, read by whoever admits peers, renews or logs."""

    node: str
    cluster: str
    serial: int
    not_before: int
    not_after: int
    joined_at: int
    ephemeral: bool
    fingerprint_sha256: str

    def __str__(self) -> str:
        return (
            f"certificate {self.serial:x} of node {self.node!r} of cluster {self.cluster!r}, "
            f"valid {_date(self.not_before)} to {_date(self.not_after)}"
        )


@dataclass(frozen=True, slots=True)
class AuthorityFacts:
    """What a cluster authority's certificate says; `pin` is the SHA-256 of its public key, in hex."""

    cluster: str
    pin: str
    not_after: int


def create_ca(cluster: str, *, now: float) -> tuple[bytes, bytes]:
    """A new cluster authority: (key PEM, certificate PEM). Raises CertificateError for an unusable cluster name."""
    if not 1 <= len(cluster) <= CLUSTER_CHARACTERS_MAX or not cluster.isprintable():
        raise CertificateError(
            f"cluster name {cluster[:80]!r} is not usable: use 1 to {CLUSTER_CHARACTERS_MAX} printable characters"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cluster)])
    builder = _builder(name, name, key.public_key(), int(now), int(now) + AUTHORITY_SECONDS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(authority=True), critical=True)
    return _key_pem(key), _pem(builder.sign(key, hashes.SHA256()))


def create_csr(node: str, key_pem: bytes | None = None) -> tuple[bytes, bytes]:
    """A signing request for `node`: (key PEM, request PEM); with a new key, or with the one given."""
    key = ec.generate_private_key(ec.SECP256R1()) if key_pem is None else _load_key(key_pem)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, check_node(node))])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return _key_pem(key), request.public_bytes(serialization.Encoding.PEM)


def issue(
    ca_key_pem: bytes,
    ca_pem: bytes,
    csr_pem: bytes,
    node: str,
    *,
    ephemeral: bool,
    now: float,
    joined_at: int | None = None,
) -> bytes:
    """A certificate for `node` over the key in the request; names in the request are ignored, its signature is checked.

    A renewal passes the `joined_at` of the certificate it renews. A join passes nothing, or, when the node was
    revoked, a time above that revocation: the clocks of revoker and issuer may differ.
    Raises CertificateError, NameRefused.
    """
    ca_key, ca = _load_key(ca_key_pem), _load_certificate(ca_pem)
    if ca_key.public_key() != ca.public_key():
        raise CertificateError("the authority's key and certificate do not belong together: restore the right ca.key")
    public_key = _load_request(csr_pem)
    issued, ca_end = int(now), int(ca.not_valid_after_utc.timestamp())
    if issued >= ca_end:
        raise CertificateError(f"the cluster authority expired on {_date(ca_end)}: begin a new cluster")
    kind, life = (_EPHEMERAL, EPHEMERAL_SECONDS) if ephemeral else (_PERSISTENT, PERSISTENT_SECONDS)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, check_node(node)),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, kind),
        ]
    )
    builder = _builder(subject, ca.subject, public_key, issued, min(issued + life, ca_end))
    for extension, critical in _leaf_extensions(ca, node, issued if joined_at is None else joined_at):
        builder = builder.add_extension(extension, critical=critical)
    return _pem(builder.sign(ca_key, hashes.SHA256()))


def describe(certificate: bytes) -> CertificateFacts:
    """The facts of a node's certificate, PEM or DER. Signatures and dates are not judged here.

    Raises CertificateError when it cannot be read or is not a node's certificate.
    """
    parsed = _load_certificate(certificate)
    try:
        node, cluster, joined_at = _names(parsed)
        units = parsed.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
        not_before = int(parsed.not_valid_before_utc.timestamp())
        return CertificateFacts(
            node=node,
            cluster=cluster,
            serial=parsed.serial_number,
            not_before=not_before,
            not_after=int(parsed.not_valid_after_utc.timestamp()),
            joined_at=not_before + BACKDATED_SECONDS if joined_at is None else joined_at,
            ephemeral=any(unit.value == _EPHEMERAL for unit in units),
            fingerprint_sha256=parsed.fingerprint(hashes.SHA256()).hex(),
        )
    except (ValueError, x509.ExtensionNotFound) as problem:
        if isinstance(problem, CertificateError):
            raise
        raise CertificateError(f"the certificate is not one of a node: {problem}") from problem


def describe_ca(certificate: bytes) -> AuthorityFacts:
    """The facts of a cluster authority's certificate, PEM or DER; raises CertificateError when it is none."""
    parsed = _load_certificate(certificate)
    try:
        authority = parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        name = _common_name(parsed)
    except (ValueError, x509.ExtensionNotFound) as problem:
        raise CertificateError("the certificate is not one of a cluster authority") from problem
    if not authority:
        raise CertificateError("the certificate is not one of a cluster authority")
    return AuthorityFacts(name, ca_pin(certificate), int(parsed.not_valid_after_utc.timestamp()))


def split_pem(content: bytes, count_max: int) -> tuple[bytes, ...]:
    """The certificates in a file or an answer, in their order. Raises CertificateError for none, or too many."""
    found = tuple(match[0] + b"\n" for match in _PEM_BLOCK.finditer(content[: count_max * CERTIFICATE_BYTES_MAX]))
    if not 1 <= len(found) <= count_max:
        raise CertificateError(f"it holds {len(found)} certificates, and 1 to {count_max} are expected")
    return found


def ca_pin(certificate: bytes) -> str:
    """SHA-256 of the certificate's DER SubjectPublicKeyInfo, in hex: what a token pins."""
    return _public_key_sha256(_load_certificate(certificate).public_key())


def csr_key_sha256(csr_pem: bytes) -> str:
    """SHA-256 of the request's DER public key, in hex: a join asked twice has it twice. Raises CertificateError."""
    return _public_key_sha256(_load_request(csr_pem))


def key_matches(key_pem: bytes, certificate: bytes) -> bool:
    """Whether the private key is the certificate's; raises CertificateError when either cannot be read."""
    return _load_key(key_pem).public_key() == _load_certificate(certificate).public_key()


def issued_by(certificate: bytes, ca_certificate: bytes) -> bool:
    """Whether the authority signed the certificate. Dates are not judged."""
    try:
        _load_certificate(certificate).verify_directly_issued_by(_load_certificate(ca_certificate))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def renewal_due(facts: CertificateFacts, now: float) -> bool:
    """True from two thirds of the certificate's life on: the last third is there to ride out an issuer that is down."""
    return now >= facts.not_before + (facts.not_after - facts.not_before) * 2 / 3


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, issued: int, end: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(issued - BACKDATED_SECONDS, UTC))
        .not_valid_after(datetime.fromtimestamp(end, UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _leaf_extensions(ca: x509.Certificate, node: str, joined_at: int) -> list[tuple[x509.ExtensionType, bool]]:
    ca_key_id = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(f"{_NODE_SCHEME}{quote(_common_name(ca), safe='')}/{node}"),
        x509.UniformResourceIdentifier(f"{_JOINED_SCHEME}{joined_at}"),
    ]
    # A node id may hold '_' and '..', which no host name may; such a node has no DNS name and tools must not check one.
    if all(_DNS_LABEL.fullmatch(label) for label in node.split(".")):
        names.append(x509.DNSName(node))
    both_ends = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(authority=False), True),
        (both_ends, False),
        (x509.SubjectAlternativeName(names), False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_key_id), False),
    ]


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _names(certificate: x509.Certificate) -> tuple[str, str, int | None]:
    """(node, cluster, joined at) of a certificate that carries exactly one node URI which its CN agrees with."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    nodes = [uri.removeprefix(_NODE_SCHEME) for uri in uris if uri.startswith(_NODE_SCHEME)]
    joins = [uri.removeprefix(_JOINED_SCHEME) for uri in uris if uri.startswith(_JOINED_SCHEME)]
    if len(nodes) != 1 or len(joins) > 1:
        raise CertificateError("the certificate is not one of a node: it must hold one spore:// name")
    cluster, _, node = nodes[0].partition("/")
    try:
        check_node(node)
    except NameRefused as problem:
        raise CertificateError(f"the certificate is not one of a node: {problem}") from problem
    if _common_name(certificate) != node:
        raise CertificateError("the certificate is not one of a node: its common name and its spore:// name differ")
    return node, unquote(cluster), int(joins[0]) if joins else None


def _common_name(certificate: x509.Certificate) -> str:
    values = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if len(values) != 1 or not isinstance(values[0], str):
        raise CertificateError("the certificate must have exactly one common name")
    return values[0]


def _load_certificate(content: bytes) -> x509.Certificate:
    if len(content) > CERTIFICATE_BYTES_MAX:
        raise CertificateError(f"the certificate has {len(content)} bytes, above {CERTIFICATE_BYTES_MAX}")
    try:
        if content.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(content)
        return x509.load_der_x509_certificate(content)
    except (ValueError, TypeError) as problem:
        raise CertificateError("the certificate cannot be read: it is damaged or no certificate") from problem


def _load_request(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a signing request whose signature proves that the asker holds it."""
    if len(csr_pem) > REQUEST_BYTES_MAX:
        raise CertificateError(f"the signing request has {len(csr_pem)} bytes, above {REQUEST_BYTES_MAX}")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key, signed = request.public_key(), request.is_signature_valid
    except Exception as problem:  # the parser raises several unrelated classes for hostile input
        raise CertificateError("the signing request cannot be read: it is damaged or none") from problem
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError("the signing request must be for an ECDSA P-256 key")
    if not signed:
        raise CertificateError("the signing request is not signed with its own key")
    return key


def _load_key(key_pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except Exception as problem:  # as above
        raise CertificateError("the private key cannot be read: it is damaged, encrypted or none") from problem
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError("the private key must be an ECDSA P-256 key")
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _public_key_sha256(key: object) -> str:
    assert hasattr(key, "public_bytes")
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def _date(unix_seconds: int) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
