"""The command `spore`: its subcommands in the order of a user's day, and the one place where errors are told."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from node.cli.adopting import adopt
from node.cli.broadcasting import broadcast
from node.cli.failures import EXIT_NOT_ACHIEVED, EXIT_USAGE, CommandFailed
from node.cli.folders import agent, check, init, join, revoke, token
from node.cli.getting import get
from node.cli.leaving import drain, remove
from node.cli.limiting import lend, limit, sync
from node.cli.looking import events, ls, peers, risk, status, where
from node.cli.planning import age, pin, plan, recommend, unpin
from node.cli.putting import put
from node.cli.rehearsing import demo, simulate
from node.cli.rotating import renew, rotate
from node.cli.waiting import flush, rm, verify, wait

COMMANDS = (
    init, token, join, revoke, agent, check,
    put, get, ls, where, rm,
    status, peers, risk, events, wait, flush, verify,
    plan, pin, unpin, broadcast, age, recommend,
    drain, remove, adopt, sync, limit, lend, renew, rotate,
    simulate, demo,
)  # fmt: skip


class Spore(click.Group):
    """A group that ends every failure in one sentence, never in a traceback (but see `--debug`)."""

    debug = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # as they were added, not by alphabet

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]  # click's own `main` has four overloads; we only ever exit
        extra["standalone_mode"] = False
        self.debug = False
        sys.exit(self._guarded(args, prog_name or "spore", extra))

    def _guarded(self, args: Sequence[str] | None, prog_name: str, extra: dict[str, Any]) -> int:
        try:
            result = super().main(args, prog_name, **extra)
            sys.stdout.flush()
            return result if isinstance(result, int) else 0
        except click.exceptions.NoArgsIsHelpError as problem:
            click.echo(problem.ctx.get_help(), err=True)
            return EXIT_USAGE
        except click.UsageError as problem:
            command = problem.ctx.command_path if problem.ctx else self._asked_for(args, prog_name)
            return _tell(f"{problem.format_message().rstrip('.')}; see `{command} --help`", EXIT_USAGE)
        except click.ClickException as problem:
            return _tell(problem.format_message(), problem.exit_code)
        except CommandFailed as problem:
            return _tell(problem.sentence, problem.exit_code)
        except BrokenPipeError:
            # Whoever read our output has seen enough (`spore ls | head`); nothing may be flushed into it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_NOT_ACHIEVED
        except (KeyboardInterrupt, click.Abort):
            return _tell("interrupted; what was accepted before stays accepted", EXIT_NOT_ACHIEVED)
        except Exception as problem:
            if self.debug:
                raise
            what = f"{type(problem).__name__}: {problem}"
            return _tell(f"this failed unexpectedly ({what}); run it as `spore --debug …` and report what it prints", 1)

    def _asked_for(self, args: Sequence[str] | None, prog_name: str) -> str:
        """The command in the arguments, for errors that click raises without saying where."""
        given = sys.argv[1:] if args is None else args
        return " ".join([prog_name, *[word for word in given if word in self.commands][:1]])


def _tell(sentence: str, exit_code: int) -> int:
    click.echo(f"spore: {' '.join(sentence.split())}", err=True)
    return exit_code


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if isinstance(ctx.command, Spore):
        ctx.command.debug = value


@click.group(cls=Spore, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="spore-agent", prog_name="spore")
@click.option("--debug", is_flag=True, expose_value=False, callback=_debug, help="Show tracebacks.")
def spore() -> None:
    """Keep training artifacts alive on a fleet: what appears on one node is safe on others at once."""


for _command in COMMANDS:
    spore.add_command(_command)
