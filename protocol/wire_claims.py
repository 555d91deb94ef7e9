"""The wire form of what nodes say of each other's life (see claims.py); numbers of types as in wire.py."""

from __future__ import annotations

from protocol import claims as c
from protocol.fields import Pack, Packed, Unpack, WireError, as_fields, as_int, as_list, as_node

INCARNATION_MAX = (1 << 63) - (1 << 40)  # room above it for every refutation of a long life
NUMBER_MAX = (1 << 63) - 1
FOLD_MAX = (1 << 64) - 1
_STANDINGS = tuple(c.Standing)


def _pack_claims(claims: tuple[c.Claim, ...]) -> Packed:
    return [[x.node, int(x.standing), x.incarnation, x.instance, x.by] for x in claims]


def _claims(value: object, count_max: int = c.PAGE_CLAIMS_MAX) -> tuple[c.Claim, ...]:
    return tuple(_claim(row) for row in as_list(value, count_max, "claims"))


def _claim(value: object) -> c.Claim:
    f = as_fields(value, 5, "claim")
    return c.Claim(
        node=as_node(f[0]),
        standing=_STANDINGS[as_int(f[1], len(_STANDINGS) - 1, "standing")],
        incarnation=as_int(f[2], INCARNATION_MAX, "incarnation"),
        instance=as_int(f[3], NUMBER_MAX, "instance"),
        by="" if f[4] == "" else as_node(f[4]),
    )


def _number(value: object) -> int:
    return as_int(value, NUMBER_MAX, "probe number")


def _unpack_buckets(f: Packed) -> c.ViewBuckets:
    folds = tuple(as_int(fold, FOLD_MAX, "fold") for fold in as_list(f[0], c.BUCKETS, "folds"))
    if len(folds) != c.BUCKETS:
        raise WireError(f"a view has {c.BUCKETS} buckets, not {len(folds)}")
    return c.ViewBuckets(folds)


def _unpack_page(f: Packed) -> c.ViewPage:
    wanted = tuple(as_int(bucket, c.BUCKETS - 1, "bucket") for bucket in as_list(f[1], c.BUCKETS, "buckets"))
    return c.ViewPage(_claims(f[0]), wanted)


# type number -> (class, count of known fields, fields from message, message from fields)
CLAIMS_TABLE: dict[int, tuple[type, int, Pack, Unpack]] = {
    12: (
        c.Ping,
        2,
        lambda x: [x.number, _pack_claims(x.claims)],
        lambda f: c.Ping(_number(f[0]), _claims(f[1], c.PROBE_CLAIMS_MAX)),
    ),
    13: (
        c.Ack,
        2,
        lambda x: [x.number, _pack_claims(x.claims)],
        lambda f: c.Ack(_number(f[0]), _claims(f[1], c.PROBE_CLAIMS_MAX)),
    ),
    14: (
        c.PingRequest,
        3,
        lambda x: [x.number, x.target, _pack_claims(x.claims)],
        lambda f: c.PingRequest(_number(f[0]), as_node(f[1]), _claims(f[2], c.PROBE_CLAIMS_MAX)),
    ),
    15: (c.Nack, 1, lambda x: [x.number], lambda f: c.Nack(_number(f[0]))),
    16: (c.Claims, 1, lambda x: [_pack_claims(x.claims)], lambda f: c.Claims(_claims(f[0]))),
    17: (c.Questions, 1, lambda x: [_pack_claims(x.claims)], lambda f: c.Questions(_claims(f[0]))),
    18: (c.ViewFold, 1, lambda x: [x.fold], lambda f: c.ViewFold(as_int(f[0], FOLD_MAX, "fold"))),
    19: (c.ViewBuckets, 1, lambda x: [list(x.folds)], _unpack_buckets),
    20: (c.ViewPage, 2, lambda x: [_pack_claims(x.claims), list(x.wanted)], _unpack_page),
}
