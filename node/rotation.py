"""Replacing the cluster's authority while the cluster runs: on an issuer, in three steps.

    begin    a second authority is made; both are trusted, the first one still signs
    switch   the second one signs, this node's own certificate first; both are trusted
    end      only the second one is trusted

Between two steps every node renews its certificate (`spore renew`), which brings it the authorities that its issuer
trusts, and, after `switch`, a certificate of the new one. A node that missed a step finds no authority in common with
the others and joins anew. Each step is one rename, or several of which each leaves an identity that is whole.
"""

from __future__ import annotations

from pathlib import Path

from node.certificates import ca_pin, create_ca, describe_ca, issued_by, key_matches
from node.identity import CA_CERTIFICATE, CA_KEY, CA_NEXT_KEY, Identity, IdentityError
from node.secret_files import fsync_folder, replace_file


def begin(directory: Path, *, now: float) -> Identity:
    """Make the second authority. Repeated, it changes nothing. Raises IdentityError, OSError."""
    identity = _issuer(directory, now)
    if len(identity.authorities) > 1:
        return identity
    key, certificate = create_ca(identity.cluster, now=now)
    replace_file(identity.folder / CA_NEXT_KEY, key)
    replace_file(identity.folder / CA_CERTIFICATE, identity.ca_pem + certificate)
    return _issuer(directory, now)


def switch(directory: Path, *, now: float) -> Identity:
    """Sign with the second authority from now on. Repeated, it changes nothing."""
    identity = _issuer(directory, now)
    following = identity.folder / CA_NEXT_KEY
    if following.exists():
        key = following.read_bytes()
        if not any(key_matches(key, authority) for authority in identity.authorities):
            raise IdentityError("mismatch", f"{following} is of no authority in {CA_CERTIFICATE}: begin again")
        following.rename(identity.folder / CA_KEY)
        fsync_folder(identity.folder)
    elif len(identity.authorities) == 1:
        raise IdentityError("missing", "there is no second authority to switch to: run `spore rotate begin` first")
    return _reissue(_issuer(directory, now), now)


def end(directory: Path, *, now: float) -> Identity:
    """Trust only the authority that signs."""
    identity = _issuer(directory, now)
    if (identity.folder / CA_NEXT_KEY).exists():
        raise IdentityError("exists", "the second authority does not sign yet: run `spore rotate switch` first")
    identity = _reissue(identity, now)
    if len(identity.authorities) > 1:
        replace_file(identity.folder / CA_CERTIFICATE, identity.authority_pem)
    return _issuer(directory, now)


STEPS = {"begin": begin, "switch": switch, "end": end}


def state(identity: Identity) -> dict[str, object]:
    """Where a roll-over is, as `spore rotate --json` prints it."""
    return {
        "signing": identity.ca_pin,
        "certificate": next(ca_pin(ca) for ca in identity.authorities if issued_by(identity.certificate_pem, ca)),
        "authorities": [{"pin": ca_pin(ca), "not_after": describe_ca(ca).not_after} for ca in identity.authorities],
        "next": (identity.folder / CA_NEXT_KEY).exists(),
    }


def _issuer(directory: Path, now: float) -> Identity:
    identity = Identity.load(directory, now=now)
    if not identity.issuer:
        raise IdentityError("missing", f"{identity.node!r} holds no authority key: run this on an issuer")
    return identity


def _reissue(identity: Identity, now: float) -> Identity:
    """This issuer's own certificate, by the authority that signs."""
    if issued_by(identity.certificate_pem, identity.authority_pem):
        return identity
    facts = identity.facts
    csr = identity.renewal_csr()
    renewed = identity.issue(csr, facts.node, ephemeral=facts.ephemeral, now=now, joined_at=facts.joined_at)
    replace_file(identity.certificate_path, renewed)
    return _issuer(identity.folder.parent, now)
