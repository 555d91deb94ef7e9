"""A newcomer with the name of a connected peer: the life that we know is asked before the newcomer is let in."""

from __future__ import annotations

from protocol import effects as f
from protocol import events as e
from protocol.claims import Ping, first_incarnation
from tests.replicas import Bench, only


def newcomer(boot: int = 2) -> e.Challenged:
    """Another life of gamma, as the session layer reads it in a hello."""
    return e.Challenged("gamma", first_incarnation(boot), boot)


def verdicts(alpha: Bench) -> list[f.Admit]:
    return list(dict.fromkeys(only(alpha.effects, f.Admit)))


def test_a_newcomer_is_turned_away_when_the_life_we_know_answers() -> None:
    alpha = Bench().boot()
    alpha.connect("gamma")
    alpha.handle(newcomer())
    (verdict,) = verdicts(alpha)
    assert (verdict.peer, verdict.instance) == ("gamma", 2)
    assert "another machine runs as gamma" in verdict.refusal


def test_a_newcomer_is_let_in_when_the_life_we_know_is_silent() -> None:
    alpha = Bench().boot()
    alpha.connect("gamma")
    alpha.gone["gamma"] = None
    alpha.handle(newcomer())
    assert verdicts(alpha) == []
    assert any(isinstance(message, Ping) for message in alpha.heard)
    for _ in range(3):
        alpha.tick()
    assert verdicts(alpha) == [f.Admit("gamma", 2)]


def test_a_newcomer_is_let_in_at_once_when_the_session_is_gone_by_then() -> None:
    alpha = Bench().boot()
    alpha.handle(newcomer())
    assert verdicts(alpha) == [f.Admit("gamma", 2)]
