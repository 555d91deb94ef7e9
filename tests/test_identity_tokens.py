"""Join tokens: the word itself, and the issuer's book of them, from making to refusing."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.certificates import csr_key_sha256
from node.identity import begin_join, init_identity, install_identity
from node.tokens import BOOK_FILE, Token, TokenBook, TokenBookDamaged, TokenError, TokenRefused, parse_token

NOW = 1_800_000_000
PIN = "ab" * 32
KEY = "cd" * 32


@pytest.fixture
def book(tmp_path: Path) -> TokenBook:
    return TokenBook(tmp_path / BOOK_FILE)


def create(
    book: TokenBook,
    *,
    ttl_seconds: float = 3600,
    uses: int = 1,
    ephemeral: bool = False,
    addresses: tuple[str, ...] = ("10.0.0.5:7946",),
    now: float = NOW,
) -> Token:
    terms = {"ca_pin": PIN, "cluster": "my-fleet", "issuer": "a1"}
    word = book.create(ttl_seconds=ttl_seconds, uses=uses, ephemeral=ephemeral, addresses=addresses, now=now, **terms)
    return parse_token(word)


def redeem(
    book: TokenBook, token: Token, node: str = "b1", *, key: str = KEY, listed: bool = True, now: float = NOW
) -> tuple[bool, bool]:
    grant = book.redeem(token.token_id, token.secret, node, key, listed=listed, now=now)
    return grant.ephemeral, grant.repeated


def refusal(book: TokenBook, token: Token, node: str = "b1", **terms: object) -> str:
    with pytest.raises(TokenRefused) as refused:
        redeem(book, token, node, **terms)  # type: ignore[arg-type]
    assert "`" in str(refused.value) or "again" in str(refused.value), "the sentence says what to do"
    return refused.value.reason


def test_a_token_is_one_word_that_says_everything_a_joiner_needs(book: TokenBook) -> None:
    addresses = ("10.0.0.5:7946", "[fd00::1]:7946", "gpu-7.example.com:1")
    token = create(book, ephemeral=True, addresses=addresses)
    word = token.encode()
    assert word.startswith("spore1-")
    assert set(word) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    assert (token.addresses, token.ca_pin, token.cluster, token.issuer) == (addresses, PIN, "my-fleet", "a1")
    assert (token.expires_at, token.ephemeral, len(token.secret)) == (NOW + 3600, True, 32)
    assert len(create(book).encode()) < 200


def test_spaces_and_line_breaks_from_copying_are_forgiven(book: TokenBook) -> None:
    token = create(book)
    word = token.encode()
    assert parse_token(f"  {word[:80]}\n  {word[80:]}\r\n") == token


def test_a_token_does_not_show_its_secret_in_logs(book: TokenBook) -> None:
    assert "secret" not in repr(create(book))


def test_a_cut_or_mistyped_token_is_refused_at_every_place(book: TokenBook) -> None:
    word = create(book).encode()
    for end in range(len(word)):
        with pytest.raises(TokenError):
            parse_token(word[:end])
    for position in range(len("spore1-"), len(word) - 1):
        other = "A" if word[position] != "A" else "B"
        with pytest.raises(TokenError, match="cut or damaged"):
            parse_token(word[:position] + other + word[position + 1 :])


@given(st.text())
def test_arbitrary_text_is_no_token_and_raises_nothing_else(text: str) -> None:
    for word in (text, "spore1-" + text):
        with pytest.raises(TokenError):
            parse_token(word)


def test_a_joiner_with_a_hostile_word_gets_no_unusable_address(book: TokenBook) -> None:
    good = create(book)
    for address in ("", "host", "host:0", "host:70000", "ho st:1", "fe80::1:7946", "u@h:1", "h/x:1", "x" * 300 + ":1"):
        hostile = Token((address,), good.ca_pin, good.token_id, good.secret, "c", "a1", NOW, False)
        with pytest.raises(TokenError):
            parse_token(hostile.encode())


def test_a_token_lets_in_as_often_as_it_says_and_no_more(book: TokenBook) -> None:
    token = create(book, uses=2)
    assert redeem(book, token, "b1") == (False, False)
    assert redeem(book, token, "b2") == (False, False)
    assert refusal(book, token, "b3") == "used_up"


def test_the_same_joiner_asking_again_takes_no_second_use(book: TokenBook) -> None:
    token = create(book, uses=1)
    assert redeem(book, token, "b1") == (False, False)
    assert redeem(book, token, "b1") == (False, True)
    assert refusal(book, token, "b1", key="ee" * 32) == "used_up"
    assert refusal(book, token, "b2") == "used_up"
    assert refusal(book, token, "b1", now=NOW + 3601) == "expired"


def test_expired_unknown_and_wrong_tokens_are_refused_each_with_its_reason(tmp_path: Path, book: TokenBook) -> None:
    token = create(book)
    wrong = Token(token.addresses, PIN, token.token_id, bytes(32), "my-fleet", "a1", token.expires_at, False)
    assert refusal(book, token, now=NOW + 3601) == "expired"
    assert refusal(TokenBook(tmp_path / "other.json"), token) == "unknown"
    assert refusal(book, wrong) == "wrong_secret"
    assert refusal(book, wrong, now=NOW + 3601) == "wrong_secret"
    assert redeem(book, token, now=NOW + 3600) == (False, False)


def test_a_name_outside_the_hosts_file_needs_an_ephemeral_token_and_takes_no_use(book: TokenBook) -> None:
    token = create(book)
    assert refusal(book, token, "vast-1", listed=False) == "unlisted"
    assert redeem(book, token, "b1") == (False, False)
    assert redeem(book, create(book, ephemeral=True), "vast-1", listed=False) == (True, False)


def test_the_book_survives_a_restart_and_holds_no_secret(tmp_path: Path, book: TokenBook) -> None:
    token = create(book, uses=2)
    redeem(book, token, "b1")
    path = tmp_path / BOOK_FILE
    assert token.secret.hex() not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    reopened = TokenBook(path)
    assert redeem(reopened, token, "b1") == (False, True)
    assert redeem(reopened, token, "b2") == (False, False)
    assert refusal(reopened, token, "b3") == "used_up"


def test_a_use_that_cannot_be_written_down_is_not_granted_and_not_taken(
    book: TokenBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = create(book)

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            redeem(book, token)
    assert redeem(book, token) == (False, False)


def test_joins_at_the_same_moment_never_take_more_uses_than_there_are(tmp_path: Path, book: TokenBook) -> None:
    token = create(book, uses=5)

    def join(number: int) -> bool:
        try:
            redeem(TokenBook(tmp_path / BOOK_FILE), token, f"b{number}")
        except TokenRefused:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(join, range(20))) == 5


def test_expired_tokens_are_forgotten_after_a_week_and_the_number_is_bounded(
    tmp_path: Path, book: TokenBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.tokens.TOKENS_MAX", 2)
    old = create(book, ttl_seconds=60)
    create(book, now=NOW + 8 * 24 * 3600)
    assert refusal(book, old, now=NOW + 8 * 24 * 3600) == "unknown"
    create(book, now=NOW + 8 * 24 * 3600)
    with pytest.raises(TokenError, match="2 tokens already"):
        create(book, now=NOW + 8 * 24 * 3600)


@pytest.mark.parametrize(
    ("terms", "sentence"),
    [
        ({"uses": 0}, "1 to 10000 uses"),
        ({"uses": 10**6}, "1 to 10000 uses"),
        ({"ttl_seconds": 0}, "1 second to 30 days"),
        ({"ttl_seconds": float("nan")}, "1 second to 30 days"),
        ({"ttl_seconds": 31 * 86400}, "1 second to 30 days"),
        ({"addresses": ()}, "1 to 8 addresses"),
        ({"addresses": ("nonsense",)}, "write host:port"),
    ],
)
def test_unreasonable_terms_make_no_token(book: TokenBook, terms: dict[str, object], sentence: str) -> None:
    with pytest.raises(TokenError, match=sentence):
        create(book, **terms)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"tokens": {"a": {}}}', '{"tokens": {"a": 1}}', '{"tokens": []}', "\x00\xff"]
)
def test_a_damaged_book_grants_nothing_and_says_so(tmp_path: Path, book: TokenBook, content: str) -> None:
    token = create(book)
    (tmp_path / BOOK_FILE).write_text(content)
    with pytest.raises(TokenBookDamaged, match="is damaged: remove it"):
        redeem(book, token)


def test_a_book_with_a_field_of_the_wrong_kind_is_damaged(tmp_path: Path, book: TokenBook) -> None:
    token = create(book)
    path = tmp_path / BOOK_FILE
    for name, value in (("uses_left", "9"), ("ephemeral", "yes"), ("salt", "zz"), ("check", 1), ("joins", [1])):
        written = json.loads(path.read_text())
        written["tokens"][token.token_id][name] = value
        (tmp_path / "copy.json").write_text(json.dumps(written))
        with pytest.raises(TokenBookDamaged):
            redeem(TokenBook(tmp_path / "copy.json"), token)


def test_the_whole_way_from_token_to_identity_is_crash_safe_for_the_joiner(tmp_path: Path) -> None:
    issuer = init_identity(tmp_path / "a", "my-fleet", "a1", now=NOW)
    book = TokenBook(issuer.folder / BOOK_FILE)
    word = book.create(
        ttl_seconds=3600,
        uses=1,
        ephemeral=True,
        addresses=["127.0.0.1:7946"],
        ca_pin=issuer.ca_pin,
        cluster=issuer.cluster,
        issuer=issuer.node,
        now=NOW,
    )
    token = parse_token(word)
    for answer_lost in (True, False):
        csr = begin_join(tmp_path / "b", "vast-1")
        grant = book.redeem(token.token_id, token.secret, "vast-1", csr_key_sha256(csr), listed=False, now=NOW)
        certificate = issuer.issue(csr, "vast-1", ephemeral=grant.ephemeral, now=NOW)
        assert grant.repeated is not answer_lost
    joined = install_identity(tmp_path / "b", issuer.ca_pem, certificate, node="vast-1", pin=token.ca_pin, now=NOW)
    assert joined.facts.ephemeral
