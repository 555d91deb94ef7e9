"""What can go wrong in a command: one sentence on stderr that says what to do next, and an exit code."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_NOT_ACHIEVED = 1  # time-out, not durable, damage
EXIT_USAGE = 2  # wrong usage or configuration
EXIT_NO_AGENT = 3  # no agent running


class CommandFailed(Exception):
    """Ends a command with its sentence and exit code."""

    def __init__(self, sentence: str, exit_code: int = EXIT_NOT_ACHIEVED) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.exit_code = exit_code


class AgentRefused(CommandFailed):
    """The agent answered with an error; sentence and code are its own."""


class NoAgent(CommandFailed):
    """Nobody answers at the node's socket."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, EXIT_NO_AGENT)
