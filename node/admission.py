"""Admission: whether a peer's certificate is good enough, and why not, in a sentence fit for the log.

OpenSSL has already checked that our authority signed what the peer shows (see `node/tls.py`). Here the rest is
decided: dates, revocation, cluster and name. Names are checked here and not by host name, because addresses move
(clouds hand out new ones at each start, one port serves NATed nodes) while a node keeps its id.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import NamedTuple

from node.certificates import CertificateError, CertificateFacts, describe


class PeerRefused(ssl.SSLError):
    """A peer that is not let in. `reason` is one of anonymous, foreign, expired, not_yet_valid, revoked, misnamed.

    It is an SSLError because it is raised inside handshakes: asyncio and aiohttp then treat it as a failed handshake.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(ssl.SSLErrorNumber.SSL_ERROR_SSL, message)
        self.reason = reason
        self.message = message


class HandshakeFault(NamedTuple):
    """Why a handshake failed: a reason as in PeerRefused, or plaintext, protocol, closed, timeout, other."""

    reason: str
    sentence: str


def check_peer(
    certificate: bytes | None,
    *,
    expected_node: str | None,
    cluster: str,
    now: float,
    revocations: Mapping[str, int],
) -> CertificateFacts:
    """The facts of an acceptable peer's certificate, or PeerRefused.

    `revocations` maps node id to unix seconds: whoever was admitted at or before that moment is out, whatever was
    renewed since. `expected_node` is whom we meant to dial; a listener passes None and takes the name from the facts.
    """
    if not certificate:
        raise PeerRefused("anonymous", "refused a peer that showed no certificate: it must join the cluster first")
    try:
        facts = describe(certificate)
    except CertificateError as problem:
        raise PeerRefused("foreign", f"refused a peer: {problem}") from problem
    refusal = _refusal(facts, expected_node, cluster, now, revocations)
    if refusal:
        raise PeerRefused(refusal.reason, f"refused {facts}: {refusal.sentence}")
    return facts


def _refusal(
    facts: CertificateFacts, expected_node: str | None, cluster: str, now: float, revocations: Mapping[str, int]
) -> HandshakeFault | None:
    if facts.cluster != cluster:
        return HandshakeFault("foreign", f"it is of another cluster than {cluster!r}")
    revoked_at = revocations.get(facts.node)
    if revoked_at is not None and facts.joined_at <= revoked_at:
        return HandshakeFault("revoked", "the node was revoked after it joined; it must join anew")
    if now > facts.not_after:
        return HandshakeFault("expired", "it has expired; the node must join anew")
    if now < facts.not_before:
        return HandshakeFault("not_yet_valid", "it is not valid yet; compare the clocks of both hosts")
    if expected_node is not None and facts.node != expected_node:
        return HandshakeFault("misnamed", f"the node expected at this address is {expected_node!r}")
    return None


# X509_V_ERR_*, as OpenSSL's x509_vfy.h numbers them; every other verification failure counts as foreign.
_VERIFY_NOT_YET_VALID = 9
_VERIFY_EXPIRED = 10

_WE_REFUSED = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": (
        "anonymous",
        "refused a peer that showed no certificate: it must join the cluster first",
    ),
    "HTTP_REQUEST": ("plaintext", "refused plain HTTP: this port speaks TLS 1.3 with client certificates only"),
    "HTTPS_PROXY_REQUEST": ("plaintext", "refused a proxy request: this port speaks TLS 1.3 only"),
    "WRONG_VERSION_NUMBER": ("plaintext", "the other side does not speak TLS: check address and port"),
    "UNSUPPORTED_PROTOCOL": ("protocol", "the other side offers no TLS 1.3: update it"),
    "NO_SUITABLE_SIGNATURE_ALGORITHM": ("protocol", "the other side cannot check ECDSA P-256 certificates: update it"),
}
_THEY_REFUSED = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": ("anonymous", "asks for a certificate: run `spore join` first"),
    "TLSV1_ALERT_UNKNOWN_CA": ("foreign", "does not know our authority: it is of another cluster"),
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": ("foreign", "does not accept our certificate"),
    "SSLV3_ALERT_BAD_CERTIFICATE": ("foreign", "does not accept our certificate"),
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": ("foreign", "does not accept our certificate"),
    "TLSV1_ALERT_DECRYPT_ERROR": ("foreign", "cannot verify our certificate: it is of another cluster"),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": ("expired", "says that our certificate has expired: run `spore join` again"),
    "SSLV3_ALERT_CERTIFICATE_REVOKED": ("revoked", "says that our certificate is revoked"),
    "TLSV1_ALERT_PROTOCOL_VERSION": ("protocol", "does not offer TLS 1.3: update it"),
    "SSLV3_ALERT_HANDSHAKE_FAILURE": ("protocol", "found no TLS parameters in common with us"),
}


def explain_handshake_error(error: BaseException) -> HandshakeFault:
    """The reason of a failed handshake, and of the read after it: under TLS 1.3 a refused client learns of it there."""
    if isinstance(error, PeerRefused):
        return HandshakeFault(error.reason, error.message)
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_verification(error)
    if isinstance(error, TimeoutError):
        return HandshakeFault("timeout", "the other side did not finish the handshake in time")
    if isinstance(error, ConnectionError | ssl.SSLEOFError | ssl.SSLZeroReturnError | EOFError):
        return HandshakeFault(
            "closed",
            "the other side closed the connection, as a node does that refuses a certificate: its log says why",
        )
    return _explain_alert(str(getattr(error, "reason", None) or ""), error)


def _explain_alert(code: str, error: BaseException) -> HandshakeFault:
    if code in _WE_REFUSED:
        return HandshakeFault(*_WE_REFUSED[code])
    if code in _THEY_REFUSED:
        reason, told = _THEY_REFUSED[code]
        return HandshakeFault(reason, f"the other side {told}")
    return HandshakeFault("other", f"the handshake failed: {code or error}")


def _explain_verification(error: ssl.SSLCertVerificationError) -> HandshakeFault:
    if error.verify_code == _VERIFY_EXPIRED:
        return HandshakeFault("expired", "refused a peer whose certificate, or whose authority, has expired")
    if error.verify_code == _VERIFY_NOT_YET_VALID:
        return HandshakeFault("not_yet_valid", "refused a peer whose certificate is not valid yet: compare the clocks")
    return HandshakeFault(
        "foreign",
        f"refused a peer whose certificate our cluster's authority did not issue ({error.verify_message}): "
        "it belongs to another cluster",
    )
