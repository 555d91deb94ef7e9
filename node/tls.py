"""TLS between nodes: version 1.3, our authority and no other, a certificate on both sides.

Every context here checks the peer inside the handshake, by `admission.check_peer`: a caller cannot forget it, and
asyncio, aiohttp and blocking sockets all see a refused peer as a failed handshake whose error says who and why. For
that sentence OpenSSL is told to leave the dates to us: it would end the handshake before anybody could read the name.
The authority's own dates are not checked by OpenSSL either then; `Identity.load` and the issuer do that work.

Host names are not checked (`check_hostname`): addresses move, ids stay; `check_peer` compares the id.

One port serves all. The join endpoint, which must be reachable without a certificate, is a context of its own that
speaks ALPN `spore-join` and nothing else; its handler must see that protocol negotiated before it answers.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from node.admission import PeerRefused, check_peer
from node.certificates import AUTHORITIES_MAX, CertificateFacts, ca_pin, describe_ca, issued_by, split_pem
from node.identity import Identity

JOIN_ALPN = "spore-join"
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL's x509_vfy.h; the ssl module has no name for it

PeerCheck = Callable[[bytes | None], object]  # raises PeerRefused


class _Connection(Protocol):
    """What of asyncio's and aiohttp's connections tells of the transport below."""

    def get_extra_info(self, name: str, default: Any = None) -> Any: ...


def told_by(connection: _Connection, name: str) -> Any:
    """`get_extra_info`, or None when the connection is over: asyncio's TLS transports fail at it once closed."""
    try:
        return connection.get_extra_info(name)
    except AttributeError:
        return None


def shown_certificate(connection: _Connection) -> bytes | None:
    """The certificate that the other side showed, DER; None when it showed none, or when the connection is over."""
    tls = told_by(connection, "ssl_object")
    shown: bytes | None = tls.getpeercert(binary_form=True) if tls is not None else None
    return shown


class _CheckedSocket(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        _check(self)


class _CheckedObject(ssl.SSLObject):
    def do_handshake(self) -> None:
        super().do_handshake()
        _check(self)


def _check(connection: ssl.SSLSocket | ssl.SSLObject) -> None:
    context = connection.context
    assert isinstance(context, CheckedContext)
    context.peer_check(connection.getpeercert(binary_form=True))


class CheckedContext(ssl.SSLContext):
    """A context whose handshakes end with a check of ours, and whose certificate can be renewed while in use.

    OpenSSL copies the certificate into each new connection without a lock, and Python lets other threads run
    meanwhile; so connections are made, and certificates loaded, one at a time. Handshakes are outside that lock.
    """

    peer_check: PeerCheck
    _changing: threading.Lock
    sslsocket_class = _CheckedSocket
    sslobject_class = _CheckedObject

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        """As the ssl module's, for connected sockets; wrapping takes the socket over, so a refusal closes it."""
        with self._changing:
            wrapped = super().wrap_socket(sock, server_side, False, suppress_ragged_eofs, server_hostname, session)
        if do_handshake_on_connect:
            try:
                wrapped.do_handshake()
            except (OSError, ValueError):
                wrapped.close()
                raise
        return wrapped

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        with self._changing:
            return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)

    def use(self, identity: Identity) -> None:
        """Show the identity's certificate in every handshake from now on, and ask for one of its authorities.

        OpenSSL forgets no authority that it was once told: one that was retired is refused by the check of ours.
        """
        with self._changing:
            self.load_cert_chain(identity.certificate_path, identity.key_path)
            if self.verify_mode == ssl.CERT_REQUIRED:
                self.load_verify_locations(cadata=identity.ca_pem.decode("ascii"))


def _context(protocol: int, alpn: Sequence[str], peer_check: PeerCheck) -> CheckedContext:
    """What all contexts share; it asks the peer for nothing yet."""
    context = CheckedContext(protocol)
    context._changing = threading.Lock()
    context.peer_check = peer_check
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.set_alpn_protocols(list(alpn))
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # sessions are kept open, not resumed: a ticket would only outlive a revocation
    return context


def _verifying(protocol: int, ca_pem: bytes, alpn: Sequence[str], peer_check: PeerCheck) -> CheckedContext:
    """A context that demands a certificate of this authority, and of `peer_check`'s liking."""
    context = _context(protocol, alpn, peer_check)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | ssl.VERIFY_X509_STRICT | _NO_CHECK_TIME)
    context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    return context


def server_context(identity: Identity, alpn: Sequence[str], peer_check: PeerCheck) -> CheckedContext:
    """For listening: the peer must show a certificate of our cluster that `peer_check` accepts."""
    context = _verifying(ssl.PROTOCOL_TLS_SERVER, identity.ca_pem, alpn, peer_check)
    context.use(identity)
    return context


def client_context(identity: Identity, alpn: Sequence[str], peer_check: PeerCheck) -> CheckedContext:
    """For dialling: as `server_context`. Whom one meant to dial is compared by the caller, once connected."""
    context = _verifying(ssl.PROTOCOL_TLS_CLIENT, identity.ca_pem, alpn, peer_check)
    context.use(identity)
    return context


def join_server_context(identity: Identity) -> CheckedContext:
    """For those who have no certificate yet: shows ours, asks for none, speaks `spore-join` alone."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, [JOIN_ALPN], _anybody)
    context.use(identity)
    return context


def _anybody(certificate: bytes | None) -> None:
    """The check of the join endpoint, where the token's secret is what counts."""


def unverified_join_context() -> ssl.SSLContext:
    """For the first step of a join alone: fetch the authority's certificate, send nothing. Anybody may answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([JOIN_ALPN])
    return context


def pinned_join_context(ca_pem: bytes, pin: str, issuer: str, clock: Callable[[], float]) -> CheckedContext:
    """For the second step: only the node that made the token, under the pinned authority, is spoken to.

    Raises PeerRefused("foreign", …) when the fetched authority is not the pinned one: the secret must not be sent.
    """
    pinned = [authority for authority in split_pem(ca_pem, AUTHORITIES_MAX) if ca_pin(authority) == pin]
    if not pinned:
        raise PeerRefused(
            "foreign",
            f"the authority at this address (pin {ca_pin(ca_pem)[:16]}…) is not the token's ({pin[:16]}…): "
            "somebody else answers there, or the token is of another cluster",
        )
    authority = describe_ca(pinned[0])

    def check(certificate: bytes | None) -> CertificateFacts:
        return check_peer(certificate, expected_node=issuer, cluster=authority.cluster, now=clock(), revocations={})

    return _verifying(ssl.PROTOCOL_TLS_CLIENT, pinned[0], [JOIN_ALPN], check)


class IdentityContexts:
    """Every context of a running node, made once and kept, so that a renewed certificate reaches all of them.

    `revocations` is read at each handshake: the agent keeps the mapping it passes up to date.
    """

    def __init__(self, identity: Identity, *, clock: Callable[[], float], revocations: Mapping[str, int]) -> None:
        self.identity = identity
        self._clock = clock
        self._revocations = revocations
        self._contexts: dict[tuple[str, tuple[str, ...]], CheckedContext] = {}  # one per use in the code: a handful

    def check(self, certificate: bytes | None, expected_node: str | None = None) -> CertificateFacts:
        """`admission.check_peer` with this node's cluster, clock and revocations, and the authorities of now."""
        facts = check_peer(
            certificate,
            expected_node=expected_node,
            cluster=self.identity.cluster,
            now=self._clock(),
            revocations=self._revocations,
        )
        if certificate and not any(issued_by(certificate, authority) for authority in self.identity.authorities):
            raise PeerRefused(
                "foreign", f"refused {facts}: the authority that signed it was retired; it must join anew"
            )
        return facts

    def server(self, alpn: Sequence[str]) -> CheckedContext:
        return self._kept("server", alpn, lambda: server_context(self.identity, alpn, self.check))

    def client(self, alpn: Sequence[str]) -> CheckedContext:
        return self._kept("client", alpn, lambda: client_context(self.identity, alpn, self.check))

    def join_server(self) -> CheckedContext:
        return self._kept("join", [JOIN_ALPN], lambda: join_server_context(self.identity))

    def reload(self) -> Identity:
        """Show the certificate now on disk in every new connection. Raises IdentityError, and then keeps the old."""
        fresh = Identity.load(
            self.identity.folder.parent,
            now=self._clock(),
            cluster=self.identity.cluster,
            node=self.identity.node,
        )
        for context in self._contexts.values():
            context.use(fresh)
        self.identity = fresh
        return fresh

    def _kept(self, use: str, alpn: Sequence[str], make: Callable[[], CheckedContext]) -> CheckedContext:
        key = (use, tuple(alpn))
        if key not in self._contexts:
            self._contexts[key] = make()
        return self._contexts[key]
