"""Digests: whatever the block size, the same digest; a list that is not the artifact's own is told apart."""

from itertools import pairwise

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.chunks import (
    CHUNK_BYTES,
    Hasher,
    chunk_count,
    chunk_digest,
    chunk_length,
    digest_of,
    list_matches,
    root_digest,
    split_leaves,
)

PATTERN = bytes(range(251))  # a prime length: no chunk of the content equals another


def content(size: int) -> bytes:
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


def leaves_of(whole: bytes) -> list[bytes]:
    return [chunk_digest(whole[at : at + CHUNK_BYTES]) for at in range(0, len(whole), CHUNK_BYTES)]


SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 2 * CHUNK_BYTES + 77]


@pytest.mark.parametrize("size", SIZES)
def test_the_digest_is_the_root_over_the_size_and_the_chunk_digests(size: int) -> None:
    whole = content(size)
    hasher = Hasher()
    hasher.update(whole)
    digest, plain, leaves = hasher.finish()
    assert leaves == leaves_of(whole)
    assert digest == root_digest(size, leaves)
    assert plain == blake3(whole).digest()
    assert hasher.size == size
    assert digest_of(whole) == (digest, plain)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 3 * CHUNK_BYTES),
    st.lists(st.sampled_from([0, 1, 4_096, 65_537, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1]), max_size=12),
    st.sampled_from([bytes, bytearray, memoryview]),
)
def test_blocks_of_any_size_and_type_give_the_digest_of_the_whole(
    size: int, blocks: list[int], form: type[bytes] | type[bytearray] | type[memoryview]
) -> None:
    whole = content(size)
    hasher = Hasher()
    cuts = [0]
    for block in blocks:
        cuts.append(min(size, cuts[-1] + block))
    for start, end in pairwise([*cuts, size]):
        hasher.update(form(whole[start:end]))
    digest, plain, leaves = hasher.finish()
    assert (digest, plain) == digest_of(whole)
    assert leaves == leaves_of(whole)


def test_a_block_may_be_used_again_by_its_reader() -> None:
    """The reader fills one buffer again and again: nothing of it may be kept."""
    whole = content(CHUNK_BYTES + 500)
    buffer = bytearray(400)
    hasher = Hasher()
    for at in range(0, len(whole), 400):
        length = min(400, len(whole) - at)
        buffer[:length] = whole[at : at + length]
        hasher.update(memoryview(buffer)[:length])
    buffer[:] = bytes(400)
    assert hasher.finish()[:2] == digest_of(whole)


def test_an_empty_artifact_has_no_chunks() -> None:
    digest, plain, leaves = Hasher().finish()
    assert leaves == []
    assert plain == blake3(b"").digest()
    assert list_matches(digest, 0, ())
    assert chunk_count(0) == 0


def test_the_chunks_of_any_size_add_up() -> None:
    for size in SIZES:
        lengths = [chunk_length(size, index) for index in range(chunk_count(size))]
        assert sum(lengths) == size
        assert all(0 < length <= CHUNK_BYTES for length in lengths)
        assert all(length == CHUNK_BYTES for length in lengths[:-1])


# --- lists from anywhere ---


def test_the_list_of_an_artifact_matches_and_no_other_does() -> None:
    whole = content(2 * CHUNK_BYTES + 77)
    digest, leaves = digest_of(whole)[0], leaves_of(whole)
    assert list_matches(digest, len(whole), leaves)
    assert not list_matches(digest, len(whole), leaves[:-1])
    assert not list_matches(digest, len(whole), [*leaves, leaves[-1]])
    assert not list_matches(digest, len(whole), leaves[::-1])
    assert not list_matches(digest, len(whole), [leaves[0], leaves[0], leaves[2]])
    assert not list_matches(digest, len(whole) - 1, leaves)
    assert not list_matches(digest, len(whole), [])
    assert not list_matches(leaves[0], len(whole), leaves)


def test_the_cut_between_leaves_cannot_be_moved() -> None:
    """The root is over joined bytes: two leaves of 16 and 48 bytes would give the same one."""
    whole = content(2 * CHUNK_BYTES)
    joined = b"".join(leaves_of(whole))
    assert list_matches(digest_of(whole)[0], len(whole), split_leaves(joined))
    assert not list_matches(digest_of(whole)[0], len(whole), [joined])
    assert not list_matches(digest_of(whole)[0], len(whole), [joined[:16], joined[16:]])
    assert split_leaves(joined) == tuple(leaves_of(whole))
    assert split_leaves(b"") == ()


def test_the_size_is_part_of_the_digest() -> None:
    leaves = [chunk_digest(b"x")]
    assert root_digest(1, leaves) != root_digest(2, leaves)


def test_a_chunk_never_passes_for_an_artifact_nor_for_its_plain_hash() -> None:
    """The three hashes of the same bytes differ: each has a context of its own."""
    for whole in (b"", b"x", content(CHUNK_BYTES)):
        digest, plain = digest_of(whole)
        assert len({digest, plain, chunk_digest(whole)}) == 3
    leaf = chunk_digest(b"x")
    forged = (1).to_bytes(8, "little") + leaf  # bytes that read like what a root is made of
    assert chunk_digest(forged) != root_digest(1, [leaf])
    assert digest_of(forged)[0] != root_digest(1, [leaf])


# --- frozen: digests are identities, on disks and between releases ---

FROZEN = {
    0: (
        "88d733110a60469dc6d37ac5e9c90b8bf7416d6ac1ccd0aa6d08d05604b2fd8d",
        "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    ),
    1: (
        "aea03cb15fd657db6b1562f201bee05a1b7e1d1079630e216aaf9234094bda98",
        "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    ),
    CHUNK_BYTES: (
        "1e3ac0acf7a5dacb726323338e0ce6c0e2f80b307cb687e6a297b01a1e27f372",
        "74cb441fd087764ca9c3694da742ebe30cbeb3060a17009ca81825c7a8d10343",
    ),
    CHUNK_BYTES + 1: (
        "481dee4797cc520e026744acc122748d0ff3afa510693285b599c52560c2f6e2",
        "2f053cd7472cf0cd2f9adaf45c1180255b91b9a865404a63671a0ee5f792ed33",
    ),
}


@pytest.mark.parametrize("size", sorted(FROZEN))
def test_digests_are_what_they_always_were(size: int) -> None:
    digest, plain = digest_of(content(size))
    assert (digest.hex(), plain.hex()) == FROZEN[size]


def test_the_digest_of_a_chunk_is_what_it_always_was() -> None:
    assert chunk_digest(b"spore").hex() == "1424e4f8902994d382d82d899f81ed63973dece84bff26b6ede7e5230bb4396f"
