"""The wire form: what is sent arrives as it was, what is no message is refused in a sentence, bytes never change."""

from dataclasses import replace
from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import claims as c
from protocol import messages as m
from protocol import wire
from protocol.cells import pack
from protocol.fields import META_BYTES_MAX, META_ITEMS_MAX, UnknownMessage, WireError
from protocol.fingerprints import PREFIXES
from protocol.sketch import Sketch
from protocol.values import (
    Holding,
    Member,
    Parcel,
    Presence,
    Record,
    Rows,
    State,
    Stripe,
)
from protocol.wire import decode, encode
from protocol.wire_claims import INCARNATION_MAX

UNHURRIED = settings(deadline=None)  # a loaded machine is no failure
D1, D2 = bytes([1]) * 32, bytes([2]) * 32
S1 = bytes([3]) * 16
RECORD = Record(
    "checkpoint/run-7/step.pt", 123 << 16, "alpha", D1, D2, 70_000, 0o640, meta=(("note", "é"), ("step", 7))
)
HOLDING = Holding("beta", S1, D1, 456 << 16)
MEMBER = Member(
    "alpha", 9 << 16, "10.0.0.5:7946", "training", "nebius", "nebius/eu", S1, True, False, True, Presence.LEFT,
    10, 20, 30, 40, "policy",
)  # fmt: skip

CLAIM = c.Claim("beta", c.Standing.SUSPECT, 7 << 20, 9, "alpha")
SKETCH = Sketch(b"fleet", 4)
SKETCH.apply([1 << 40, 2 << 40, 3])

# One of each, with every field away from its default.
MESSAGES: dict[str, m.Message] = {
    "hello": m.Hello("fleet", MEMBER, 7, (12, 1 << 63), 7 << 20, 9),
    "rows": m.RowsMessage(Rows((RECORD,), (HOLDING,), (MEMBER,))),
    "cells": m.CellsMessage(SKETCH.cells(0, 3)),
    "cells wanted": m.CellsWanted(900),
    "lacking": m.Lacking((1 << 63, 5)),
    "prints": m.Prints(3, 900, (3 << 40, 7 << 40)),
    "ping": c.Ping(5, (CLAIM,)),
    "ack": c.Ack(5, (CLAIM,)),
    "ping request": c.PingRequest(6, "gamma", (CLAIM,)),
    "nack": c.Nack(6),
    "claims": c.Claims((CLAIM, c.Claim("gamma", c.Standing.LEFT, 3))),
    "questions": c.Questions((CLAIM,)),
    "view fold": c.ViewFold(1 << 63),
    "view buckets": c.ViewBuckets(tuple(range(c.BUCKETS))),
    "view page": c.ViewPage((CLAIM,), (0, 63)),
    "offer": m.Offer(11, (Parcel(RECORD, (Stripe(0, 1),)), Parcel(replace(RECORD, hlc=1))), 4),
    "take": m.Take(11, ("", m.BUSY), ((Stripe(2, 3), Stripe(9, 1)), ())),
    "receipt": m.Receipt(11, (HOLDING,), ((D2, "the disk is full"),)),
    "ask": m.Ask(12, (D1, D2)),
    "unreachable": m.Unreachable(7),
    "confirm": m.Confirm((D1, D2)),
    "shares": m.Shares(b"\1" * 16, b"\2" * 16),
    "confirmed": m.Confirmed((D1, D2), (D2,)),
    "farewell": m.Farewell(
        3, 900, (m.Saved("beta", 2, 600),), 1, 300, 1, 300, (m.Unsafe(RECORD.key, D1, 300, 0, "the time was over"),)
    ),
    "pieces": m.Pieces(D1, 0b1_0000_0001, 1 << 9),
    "fetchers": m.Fetchers(D1, ("alpha", "beta")),
    "goodbye": m.Goodbye("nothing at risk"),
}

# The bytes of the messages above. Nodes of two releases speak to each other for as long as these stay as they are: a
# change here needs a new VERSION, unless it only adds fields at the end (see the charter of wire.py).
FROZEN = {
    "unreachable": "93011d07",
    "shares": "940123c41001010101010101010101010101010101c41002020202020202020202020202020202",
    "confirm": (
        "93012192c4200101010101010101010101010101010101010101010101010101010101010101c42002020202020202020202"
        "02020202020202020202020202020202020202020202"
    ),
    "confirmed": (
        "94012292c4200101010101010101010101010101010101010101010101010101010101010101c42002020202020202020202"
        "0202020202020202020202020202020202020202020291c42002020202020202020202020202020202020202020202020202"
        "02020202020202"
    ),
    "hello": (
        "980101a5666c656574dc0010a5616c706861ce00090000ad31302e302e302e353a37393436a8747261696e696e67a66e6562"
        "697573a96e65626975732f6575c41003030303030303030303030303030303c3c2c3010a141e28a6706f6c69637907920ccf"
        "8000000000000000ce0070000009"
    ),
    "rows": (
        "950102919ab8636865636b706f696e742f72756e2d372f737465702e7074ce007b0000a5616c706861c42001010101010101"
        "01010101010101010101010101010101010101010101010101c4200202020202020202020202020202020202020202020202"
        "020202020202020202ce00011170cd01a000a7636c75737465729292a46e6f7465a2c3a992a473746570079195a462657461"
        "c41003030303030303030303030303030303c420010101010101010101010101010101010101010101010101010101010101"
        "0101ce01c80000c391dc0010a5616c706861ce00090000ad31302e302e302e353a37393436a8747261696e696e67a66e6562"
        "697573a96e65626975732f6575c41003030303030303030303030303030303c3c2c3010a141e28a6706f6c696379"
    ),
    "cells": (
        "930103c43f010000030003000000000000000300000000030000030000000003000000000000000200000000000000010000"
        "03f012d474c401009593c8a5012032a1e1d1"
    ),
    "cells wanted": "930109cd0384",
    "lacking": "93010a92cf800000000000000005",
    "prints": "95010b03cd038492cf0000030000000000cf0000070000000000",
    "ping": "94010c059195a46265746101ce0070000009a5616c706861",
    "ack": "94010d059195a46265746101ce0070000009a5616c706861",
    "ping request": "95010e06a567616d6d619195a46265746101ce0070000009a5616c706861",
    "nack": "93010f06",
    "claims": "9301109295a46265746101ce0070000009a5616c70686195a567616d6d61030300a0",
    "questions": "9301119195a46265746101ce0070000009a5616c706861",
    "view fold": "930112cf8000000000000000",
    "view buckets": (
        "930113dc0040000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b"
        "2c2d2e2f303132333435363738393a3b3c3d3e3f"
    ),
    "view page": "9401149195a46265746101ce0070000009a5616c70686192003f",
    "offer": (
        "9501040b92929ab8636865636b706f696e742f72756e2d372f737465702e7074ce007b0000a5616c706861c4200101010101"
        "010101010101010101010101010101010101010101010101010101c420020202020202020202020202020202020202020202"
        "0202020202020202020202ce00011170cd01a000a7636c75737465729292a46e6f7465a2c3a992a473746570079192000192"
        "9ab8636865636b706f696e742f72756e2d372f737465702e707401a5616c706861c420010101010101010101010101010101"
        "0101010101010101010101010101010101c42002020202020202020202020202020202020202020202020202020202020202"
        "02ce00011170cd01a000a7636c75737465729292a46e6f7465a2c3a992a473746570079004"
    ),
    "take": "9501050b92a0a462757379929292020392090190",
    "receipt": (
        "9501060b9195a462657461c41003030303030303030303030303030303c42001010101010101010101010101010101010101"
        "01010101010101010101010101ce01c80000c39192c420020202020202020202020202020202020202020202020202020202"
        "0202020202b0746865206469736b2069732066756c6c"
    ),
    "ask": (
        "9401070c92c4200101010101010101010101010101010101010101010101010101010101010101c420020202020202020202"
        "0202020202020202020202020202020202020202020202"
    ),
    "farewell": (
        "9a011903cd03849193a46265746102cd025801cd012c01cd012c9197b8636865636b706f696e742f72756e2d372f73746570"
        "2e7074ce007b0000a5616c706861c4200101010101010101010101010101010101010101010101010101010101010101cd01"
        "2c00b17468652074696d6520776173206f766572"
    ),
    "pieces": ("950115c4200101010101010101010101010101010101010101010101010101010101010101c4020101c4020002"),
    "fetchers": ("940116c420010101010101010101010101010101010101010101010101010101010101010192a5616c706861a462657461"),
    "goodbye": "930108af6e6f7468696e67206174207269736b",
}


# --- what is sent arrives ---

nodes = st.from_regex(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?", fullmatch=True)
kinds = st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True)
parts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="/"), min_size=1, max_size=60
).filter(lambda part: part not in (".", "..", ".spore"))
names = st.builds(lambda kind, path: f"{kind}/{'/'.join(path)}", kinds, st.lists(parts, min_size=1, max_size=3))
digests = st.binary(min_size=32, max_size=32)
stores = st.binary(min_size=16, max_size=16)
stamps = st.integers(0, wire.HLC_MAX)
numbers = st.integers(0, wire.SEQ_MAX)
sentences = st.text(st.characters(codec="utf-8"), max_size=wire.SENTENCE_CHARS_MAX)
short = st.text(st.characters(codec="utf-8"), max_size=64)
meta = st.lists(
    st.tuples(
        st.text(st.characters(codec="utf-8"), max_size=10),
        st.text(st.characters(codec="utf-8"), max_size=10) | st.integers(-wire.SEQ_MAX, wire.SEQ_MAX),
    ),
    max_size=META_ITEMS_MAX,
).map(tuple)
records = st.builds(
    Record,
    name=names,
    hlc=stamps,
    origin=nodes,
    digest=digests,
    blake3=digests,
    size=st.integers(0, wire.SIZE_MAX),
    mode=st.integers(0, 0o7777),
    state=st.sampled_from(State),
    scope=st.sampled_from(["cluster", "peers"]),
    meta=meta,
)
holdings = st.builds(Holding, nodes, stores, digests, numbers, st.booleans())
members = st.builds(
    Member,
    node=nodes,
    seq=numbers,
    address=short,
    role=short,
    provider=short,
    domain=short,
    store=stores,
    ephemeral=st.booleans(),
    excluded=st.booleans(),
    accepting=st.booleans(),
    presence=st.sampled_from(Presence),
    capacity_bytes=numbers,
    used_bytes=numbers,
    at_risk_count=numbers,
    at_risk_bytes=numbers,
    policy_hash=short,
)
stripes = st.lists(st.builds(Stripe, st.integers(0, wire.SIZE_MAX), st.integers(0, wire.SIZE_MAX)), max_size=3).map(
    tuple
)


def few(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=3).map(tuple)


prints = st.integers(0, (1 << 64) - 1)
claims = st.builds(
    c.Claim,
    nodes,
    st.sampled_from(c.Standing),
    st.integers(0, INCARNATION_MAX),
    numbers,
    st.one_of(st.just(""), nodes),
)


def sketch_of(items: list[int]) -> Sketch:
    sketch = Sketch(b"fleet", 8)
    sketch.apply(items)
    return sketch


folds = st.tuples(numbers, st.integers(0, (1 << 64) - 1))
messages = st.one_of(
    st.builds(m.Hello, short, members, numbers, folds, st.integers(0, INCARNATION_MAX), numbers),
    st.builds(m.RowsMessage, st.builds(Rows, few(records), few(holdings), few(members))),
    st.lists(prints, max_size=20, unique=True).map(lambda items: m.CellsMessage(sketch_of(items).cells(0, 8))),
    st.builds(m.CellsWanted, st.integers(0, wire.FINGERPRINTS_MAX)),
    st.builds(m.Lacking, few(prints)),
    st.builds(c.Ping, numbers, few(claims)),
    st.builds(c.Ack, numbers, few(claims)),
    st.builds(c.PingRequest, numbers, nodes, few(claims)),
    st.builds(c.Nack, numbers),
    st.builds(c.Claims, few(claims)),
    st.builds(c.Questions, few(claims)),
    st.builds(c.ViewFold, prints),
    st.builds(c.ViewBuckets, st.lists(prints, min_size=c.BUCKETS, max_size=c.BUCKETS).map(tuple)),
    st.builds(c.ViewPage, few(claims), few(st.integers(0, c.BUCKETS - 1))),
    st.builds(m.Prints, st.integers(0, PREFIXES - 1), st.just(PREFIXES), few(prints)),
    st.builds(m.Offer, numbers, few(st.builds(Parcel, records, stripes)), numbers),
    st.lists(st.tuples(sentences, stripes), max_size=3).flatmap(
        lambda pairs: st.builds(
            m.Take, numbers, st.just(tuple(why for why, _ in pairs)), st.just(tuple(gaps for _, gaps in pairs))
        )
    ),
    st.builds(m.Receipt, numbers, few(holdings), few(st.tuples(digests, sentences))),
    st.builds(m.Ask, numbers, few(digests)),
    st.builds(m.Unreachable, numbers),
    st.builds(
        m.Farewell,
        *[st.integers(0, 9)] * 2,
        st.just((m.Saved("beta", 2, 600),)),
        *[st.integers(0, 9)] * 4,
        st.builds(lambda r, why: (m.Unsafe(r.key, r.digest, r.size, 0, why),), records, sentences),
    ),
    st.builds(m.Goodbye, sentences),
)


@UNHURRIED
@given(messages)
def test_every_message_arrives_as_it_was_sent(message: m.Message) -> None:
    assert decode(encode(message)) == message


@UNHURRIED
@given(messages)
def test_a_message_has_one_form(message: m.Message) -> None:
    assert encode(decode(encode(message))) == encode(message)


def test_an_empty_message_of_each_kind_arrives() -> None:
    empty = (m.Offer(0, ()), m.Take(0, (), ()), m.Receipt(0, ()), m.Ask(0, ()), m.Pieces(D1, 0, 0), m.Fetchers(D1, ()))
    for message in (m.RowsMessage(Rows()), *empty):
        assert decode(encode(message)) == message


def test_a_fixed_message_of_every_type_has_the_bytes_it_always_had() -> None:
    assert {type(message) for message in MESSAGES.values()} == set(get_args(m.Message))
    assert {kind: encode(message).hex() for kind, message in MESSAGES.items()} == FROZEN


def test_an_offer_to_pull_says_so_in_a_field_that_older_nodes_ignore() -> None:
    offer = m.Offer(11, (Parcel(RECORD),))
    assert packed(replace(offer, pull=True)) == [*packed(offer), True]
    assert decode(encode(replace(offer, pull=True))) == replace(offer, pull=True)
    assert decode(msgpack.packb([*packed(offer), "what a later release says there"])) == offer


@pytest.mark.parametrize("kind", sorted(FROZEN))
def test_the_frozen_bytes_still_mean_the_same(kind: str) -> None:
    assert decode(bytes.fromhex(FROZEN[kind])) == MESSAGES[kind]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ([3, "x"], "cells must be bytes"),
        ([3, b"x"], "too few"),
        ([3, pack(SKETCH.cells(1, 3))], "must begin with the first"),
        ([9, wire.FINGERPRINTS_MAX + 1], "cells"),
        ([10, [-1]], "fingerprint"),
        ([10, [0] * (wire.FINGERPRINTS_MAX + 1)], "over the bound"),
        ([11, 5, 5, []], "cannot go from 5 to 5"),
        ([11, 5, PREFIXES + 1, []], "cannot go from 5"),
        ([11, PREFIXES, PREFIXES + 2, []], "last prefix"),
        ([12, 5, [["beta", 4, 1, 1, ""]]], "standing"),
        ([12, 5, [["beta", 0, INCARNATION_MAX + 1, 1, ""]]], "incarnation"),
        ([12, 5, [["beta", 0, 1, 1]]], "needs 5 fields"),
        ([12, 5, [["Beta!", 0, 1, 1, ""]]], "Beta!"),
        ([12, 5, [["beta", 0, 1, 1, "/"]]], "/"),
        ([12, 5, [["beta", 0, 1, 1, ""]] * (c.PROBE_CLAIMS_MAX + 1)], "over the bound"),
        ([16, [["beta", 0, 1, 1, ""]] * (c.PAGE_CLAIMS_MAX + 1)], "over the bound"),
        ([19, [1, 2]], "64 buckets"),
        ([20, [], [64]], "bucket"),
    ],
)
def test_what_is_no_part_of_a_comparison_or_a_claim_is_refused(fields: list[Any], why: str) -> None:
    with pytest.raises(WireError, match=why):
        decode(msgpack.packb([wire.VERSION, *fields]))


# --- what a later version may add ---


def packed(message: m.Message) -> list[Any]:
    fields = msgpack.unpackb(encode(message), raw=False)
    assert isinstance(fields, list)
    return fields


@pytest.mark.parametrize("kind", sorted(MESSAGES))
def test_fields_beyond_those_known_are_ignored(kind: str) -> None:
    longer = [*packed(MESSAGES[kind]), "a later field", {"with": ["anything", None]}]
    assert decode(msgpack.packb(longer)) == MESSAGES[kind]


def test_fields_beyond_those_known_are_ignored_in_rows_too() -> None:
    fields = packed(MESSAGES["rows"])
    for table in fields[2:5]:
        table[0].append("a later field")
    assert decode(msgpack.packb(fields)) == MESSAGES["rows"]


@pytest.mark.parametrize("number", [0, 98, 99, -1, 1 << 40, True, "1", None, [1], 1.0])
def test_an_unknown_type_is_told_apart_so_that_it_can_be_ignored(number: object) -> None:
    with pytest.raises(UnknownMessage) as caught:
        decode(msgpack.packb([wire.VERSION, number, "whatever"]))
    is_one_sentence(caught.value)


@pytest.mark.parametrize("version", [0, 2, 255, True, 1.0, "1", None])
def test_another_version_is_refused_whatever_follows(version: object) -> None:
    with pytest.raises(WireError, match="version") as caught:
        decode(msgpack.packb([version, *packed(MESSAGES["goodbye"])[1:]]))
    assert not isinstance(caught.value, UnknownMessage)
    is_one_sentence(caught.value)


# --- what is no message ---


def is_one_sentence(problem: Exception) -> None:
    said = str(problem)
    assert said
    assert "\n" not in said
    assert len(said) < 600
    assert not said.endswith("Error")


def refused(frame: bytes) -> str:
    """What the refusal of a frame says; fails unless it is refused with one sentence."""
    with pytest.raises(WireError) as caught:
        decode(frame)
    is_one_sentence(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", sorted(MESSAGES))
def test_every_truncation_is_refused(kind: str) -> None:
    whole = encode(MESSAGES[kind])
    for length in range(len(whole)):
        refused(whole[:length])


@pytest.mark.parametrize("kind", sorted(MESSAGES))
def test_bytes_after_the_message_are_refused(kind: str) -> None:
    refused(encode(MESSAGES[kind]) + b"\xc0")


@pytest.mark.parametrize("kind", sorted(MESSAGES))
def test_missing_fields_are_refused(kind: str) -> None:
    fields = packed(MESSAGES[kind])
    for count in range(len(fields)):
        refused(msgpack.packb(fields[:count]))


def test_an_oversized_frame_is_refused_before_it_is_decoded() -> None:
    assert "bound" in refused(b"\xc0" * (wire.MESSAGE_BYTES_MAX + 1))


@UNHURRIED
@given(st.binary(max_size=400))
def test_random_bytes_are_refused_or_mean_a_message(frame: bytes) -> None:
    try:
        message = decode(frame)
    except WireError as problem:
        is_one_sentence(problem)
    else:
        assert isinstance(message, tuple(MESSAGES[kind].__class__ for kind in MESSAGES))


@UNHURRIED
@given(messages, st.data())
def test_a_message_with_a_byte_changed_is_refused_or_means_another_sound_message(
    message: m.Message, choice: st.DataObject
) -> None:
    whole = bytearray(encode(message))
    at = choice.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= choice.draw(st.integers(1, 255))
    try:
        heard = decode(bytes(whole))
    except WireError as problem:
        is_one_sentence(problem)
    else:
        assert decode(encode(heard)) == heard


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=40)
    | st.text(st.characters(codec="utf-8"), max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def places(fields: list[Any], at: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """Where in a nested list each of its elements stands."""
    found = []
    for index, element in enumerate(fields):
        found.append((*at, index))
        if isinstance(element, list):
            found += places(element, (*at, index))
    return found


@UNHURRIED
@given(st.sampled_from(sorted(MESSAGES)), st.data(), junk)
def test_junk_in_any_field_is_refused_or_harmless(kind: str, choice: st.DataObject, content: object) -> None:
    fields = packed(MESSAGES[kind])
    *path, last = choice.draw(st.sampled_from(places(fields)))
    inside = fields
    for index in path:
        inside = inside[index]
    inside[last] = content
    try:
        heard = decode(msgpack.packb(fields))
    except WireError as problem:
        is_one_sentence(problem)
    else:
        assert decode(encode(heard)) == heard


def test_deep_nesting_is_refused() -> None:
    refused(b"\x91" * 100_000 + b"\xc0")


def test_extension_types_and_maps_are_no_messages() -> None:
    refused(msgpack.packb(msgpack.ExtType(5, b"x")))
    refused(msgpack.packb(msgpack.Timestamp(1)))
    refused(msgpack.packb({"version": 1}))
    refused(b"\x81\x90\xc0")  # a map with a list as its key


def test_a_refusal_never_repeats_a_line_break_of_the_peer() -> None:
    row = packed(MESSAGES["rows"])
    for index, content in ((1, "1\n2"), (5, "x\ny"), (7, "x\ny"), (8, "a\nb"), (0, "model/a\nb"), (2, "a\nb")):
        broken = packed(MESSAGES["rows"])
        broken[2][0][index] = content
        refused(msgpack.packb(broken))
    row[1] = "x\ny"
    refused(msgpack.packb(row))


# --- bounds ---


def with_record(**changes: object) -> bytes:
    return encode(m.RowsMessage(Rows(records=(replace(RECORD, **changes),))))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"hlc": wire.HLC_MAX + 1},
        {"hlc": -1},
        {"size": wire.SIZE_MAX + 1},
        {"size": -1},
        {"mode": 0o10000},
        {"digest": bytes(31)},
        {"blake3": bytes(33)},
        {"state": 3},
        {"scope": "everywhere"},
        {"meta": (("key", 1),) * (META_ITEMS_MAX + 1)},
        {"meta": (("key", "x" * META_BYTES_MAX),)},
        {"meta": (("key", "é" * (META_BYTES_MAX // 2)),)},
        {"meta": (("key", wire.SEQ_MAX + 1),)},
        {"meta": (("key", None),)},
        {"meta": (("key", True),)},
        {"meta": ((1, "value"),)},
        {"meta": (("k" * 65, "value"),)},
    ],
    ids=str,
)
def test_a_record_out_of_bounds_is_refused(changes: dict[str, object]) -> None:
    decode(with_record())
    refused(with_record(**changes))


@pytest.mark.parametrize(
    "changes",
    [{"hlc": wire.HLC_MAX}, {"hlc": 0}, {"size": wire.SIZE_MAX}, {"mode": 0o7777}, {"meta": (("k" * 64, "v"),)}],
    ids=str,
)
def test_a_record_at_its_bounds_is_taken(changes: dict[str, object]) -> None:
    decode(with_record(**changes))


def test_no_number_of_a_row_is_beyond_what_a_database_can_hold() -> None:
    largest = (1 << 63) - 1  # SQLite's integers have 64 bits with a sign
    assert largest in (wire.HLC_MAX, wire.SEQ_MAX)
    assert max(wire.HLC_MAX, wire.SEQ_MAX, wire.SIZE_MAX) <= largest


@pytest.mark.parametrize(
    "name",
    [
        "", "model", "model/", "/model/x", "model/../x", "model/./x", "model//x", "../x", "model/a\0b", "model/a\nb",
        "model/\x7f", "model/" + "x" * 256, "model/" + "é" * 128, "m/" + "x/" * 600 + "x", "Model/x", "1model/x",
        "model/.spore/store", ".spore/x", "m" * 33 + "/x",
    ],
)  # fmt: skip
def test_a_bad_name_in_a_row_is_refused(name: str) -> None:
    assert "name" in refused(with_record(name=name))


BAD_NODES = ["", "Alpha", "-alpha", "alpha-", ".", "..", "a/b", "a b", "a\0b", "a\nb", "x" * 64, "é"]


@pytest.mark.parametrize("node", BAD_NODES)
def test_a_bad_node_in_any_row_is_refused(node: str) -> None:
    assert "node" in refused(with_record(origin=node))
    assert "node" in refused(encode(m.RowsMessage(Rows(holdings=(replace(HOLDING, node=node),)))))
    assert "node" in refused(encode(m.RowsMessage(Rows(members=(replace(MEMBER, node=node),)))))
    assert "node" in refused(encode(m.Hello("fleet", replace(MEMBER, node=node), 1, (0, 0), 1, 1)))


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": -1},
        {"seq": wire.SEQ_MAX + 1},
        {"store": bytes(15)},
        {"digest": b""},
        {"present": 1},
    ],
    ids=str,
)
def test_a_holding_out_of_bounds_is_refused(changes: dict[str, object]) -> None:
    refused(encode(m.RowsMessage(Rows(holdings=(replace(HOLDING, **changes),)))))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": wire.SEQ_MAX + 1},
        {"store": bytes(17)},
        {"address": "x" * 301},
        {"role": "x" * 65},
        {"domain": "x" * 201},
        {"ephemeral": 0},
        {"accepting": None},
        {"presence": 2},
        {"used_bytes": -1},
        {"policy_hash": "x" * 65},
    ],
    ids=str,
)
def test_a_member_out_of_bounds_is_refused(changes: dict[str, object]) -> None:
    refused(encode(m.RowsMessage(Rows(members=(replace(MEMBER, **changes),)))))  # type: ignore[arg-type]


TOO_MANY = [
    m.RowsMessage(Rows(holdings=(HOLDING,) * (wire.ROWS_MAX + 1))),
    m.RowsMessage(Rows(records=(Record("a/b", 1, "a", D1, D1, 1),) * (wire.ROWS_MAX + 1))),
    m.RowsMessage(Rows(members=(MEMBER,) * (wire.ROWS_MAX + 1))),
    m.Offer(1, (Parcel(Record("a/b", 1, "a", D1, D1, 1)),) * (wire.PARCELS_MAX + 1)),
    m.Offer(1, (Parcel(RECORD, (Stripe(0, 1),) * (wire.STRIPES_MAX + 1)),)),
    m.Take(1, ("",) * (wire.PARCELS_MAX + 1), ((),) * (wire.PARCELS_MAX + 1)),
    m.Take(1, ("",), ((Stripe(0, 1),) * (wire.STRIPES_MAX + 1),)),
    m.Receipt(1, (HOLDING,) * (wire.PARCELS_MAX + 1)),
    m.Receipt(1, (), ((D1, "why"),) * (wire.PARCELS_MAX + 1)),
    m.Ask(1, (D1,) * (wire.PARCELS_MAX + 1)),
]


@pytest.mark.parametrize("message", TOO_MANY, ids=lambda message: type(message).__name__)
def test_too_many_of_anything_are_refused(message: m.Message) -> None:
    assert "bound" in refused(encode(message))


@pytest.mark.parametrize("kind", ["goodbye", "take", "receipt", "hello"])
def test_sentences_are_bounded(kind: str) -> None:
    """Whatever a peer sends: our own are clipped before they leave."""
    fields = packed(MESSAGES[kind])
    longest = "x" * (wire.SENTENCE_CHARS_MAX + 1)
    match kind:
        case "take":
            fields[3][0] = longest
        case "receipt":
            fields[4][0][1] = longest
        case _:
            fields[2] = longest
    refused(msgpack.packb(fields))


def test_a_take_must_answer_every_parcel_twice() -> None:
    refused(encode(m.Take(1, ("", ""), ((),))))


def test_the_fullest_messages_of_the_core_fit_the_bound() -> None:
    """What the core sends is cut by counts; the bytes must follow from them, for `encode` does not cut."""
    long_name = "checkpoint/" + "/".join(["x" * 200] * 5)
    largest = replace(
        RECORD,
        name=long_name[:1024],
        hlc=wire.HLC_MAX,
        origin="n" * 63,
        size=wire.SIZE_MAX,
        meta=tuple((f"key{index:03}", "v" * 57) for index in range(32)),
    )
    offer = m.Offer(wire.SEQ_MAX, (Parcel(largest),) * wire.PARCELS_MAX)
    assert len(encode(offer)) <= wire.MESSAGE_BYTES_MAX
    assert decode(encode(offer)) == offer
    rows = m.RowsMessage(Rows(records=(largest,) * 1_000))
    assert len(encode(rows)) <= wire.MESSAGE_BYTES_MAX


# --- plain structures, for the log and the manifest ---


@UNHURRIED
@given(junk)
def test_plain_structures_come_back(value: object) -> None:
    assert wire.unpack_value(wire.pack_value(value)) == value


def test_plain_structures_are_bounded_and_refused_like_messages() -> None:
    with pytest.raises(WireError, match="bound"):
        wire.unpack_value(bytes(101), bytes_max=100)
    with pytest.raises(WireError):
        wire.unpack_value(b"\xc1")


@UNHURRIED
@given(records, holdings, members)
def test_rows_can_be_packed_one_by_one(record: Record, holding: Holding, member: Member) -> None:
    assert wire.unpack_record(msgpack.unpackb(msgpack.packb(wire.pack_record(record)))) == record
    assert wire.unpack_holding(msgpack.unpackb(msgpack.packb(wire.pack_holding(holding)))) == holding
    assert wire.unpack_member(msgpack.unpackb(msgpack.packb(wire.pack_member(member)))) == member


def test_a_reason_longer_than_the_bound_is_clipped_by_its_sender() -> None:
    """A name of 1,024 bytes quoted in a reason would make the message unreadable, and its sender banned."""
    long = "x" * 2_000
    for message in (
        m.Take(1, (long,), ((),)),
        m.Receipt(1, (), ((bytes(32), long),)),
        m.Goodbye(long),
    ):
        assert wire.decode(wire.encode(message)) != message
