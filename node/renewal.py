"""Renewal: a node's next certificate, asked of an issuer over mutual TLS, taken without a restart."""

from __future__ import annotations

from collections.abc import Sequence

from node.admission import PeerRefused
from node.asking import AskError, ask
from node.certificates import CertificateError
from node.identity import Identity, IdentityError, replace_certificate
from node.listener import WEB_ALPN
from node.tls import IdentityContexts


class RenewalFailed(Exception):
    """No issuer renewed our certificate; the message says why for each."""


def renew_certificate(contexts: IdentityContexts, issuers: Sequence[tuple[str, str]], *, now: float) -> Identity:
    """Ask the issuers, given as (node, address), in turn; every context uses the new certificate afterwards. Blocks.

    An issuer signs its own. Raises RenewalFailed; the old certificate stays in use then.
    """
    identity = contexts.identity
    csr = identity.renewal_csr()
    problems = []
    try:
        if identity.issuer:
            own = identity.facts
            return _take(
                contexts, identity.issue(csr, own.node, ephemeral=own.ephemeral, now=now, joined_at=own.joined_at), now
            )
        for issuer, address in issuers:
            try:
                return _take(contexts, _ask_issuer(contexts, issuer, address, csr), now)
            except (AskError, IdentityError) as problem:
                problems.append(f"{issuer}: {problem}")
    except (CertificateError, IdentityError, OSError) as problem:
        problems.append(str(problem))
    raise RenewalFailed("the certificate was not renewed: " + ("; ".join(problems) or "no issuer is known"))


def _ask_issuer(contexts: IdentityContexts, issuer: str, address: str, csr: bytes) -> bytes:
    def check(certificate: bytes | None) -> None:
        try:
            contexts.check(certificate, expected_node=issuer)
        except PeerRefused as refusal:
            raise AskError(refusal.message, distrusted=True) from refusal

    answered = ask(address, contexts.client(WEB_ALPN), "POST", "/v1/renew", csr, check=check)
    if answered.status != 200:
        raise AskError(answered.body[:500].decode(errors="replace").strip() or f"it answered {answered.status}")
    return answered.body


def _take(contexts: IdentityContexts, certificate_pem: bytes, now: float) -> Identity:
    replace_certificate(contexts.identity, certificate_pem, now=now)
    return contexts.reload()
