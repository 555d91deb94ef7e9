"""`spore agent`: one process. Lock, log, signals, service manager; everything else is `node.agent`.

Exit codes: 0 when all that was accepted here is durable, 1 when the final flush left something at risk (the log says
what), 2 when the node cannot start as it is configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from node.admin import AdminRefused, AdminServer
from node.agent import Agent
from node.announced import Announced
from node.config import HOSTS_FILE_NAME, ConfigError, load_fleet
from node.identity import Identity, IdentityError
from node.listener import ListenError
from node.notify import Notifier
from node.service import Service
from protocol.effects import Exit, Report
from protocol.farewells import farewell_sentence, unsafe_sentence
from protocol.fleet import Fleet
from storage.manifest_file import ManifestRefused
from storage.mounts import network_file_system
from storage.refusals import StoreError

EXIT_UNSAFE = 1
EXIT_USAGE = 2
END_SECONDS = 0.25  # before the budget is over the process ends, whatever still runs
SWITCH_SECONDS = 0.0005  # the loop gives up the interpreter at each look-up; threads must not keep it for 5 ms each
YOUNG_OBJECTS_MAX = 20_000  # between looks for cycles: a burst makes 50 values an artifact, and no cycle of them
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class StartRefused(Exception):
    """The agent cannot run like this; one sentence says what is wrong and what to do."""


def run(directory: Path) -> int:
    """Run the agent of a node's folder until a signal ends it. Returns the exit code of the process."""
    logger = _logger()
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()  # what was imported stays; it is not looked through again and again
    gc.set_threshold(YOUNG_OBJECTS_MAX, 20, 50)
    try:
        with _lock(directory):
            identity, fleet = _load(directory)
            return asyncio.run(_serve(directory, identity, fleet, logger))
    except (
        AdminRefused,
        StartRefused,
        ConfigError,
        IdentityError,
        ListenError,
        ManifestRefused,
        StoreError,
    ) as problem:
        print(f"spore agent: {problem}", file=sys.stderr)
        return EXIT_USAGE
    except (OSError, sqlite3.Error) as problem:
        print(f"spore agent: {directory} cannot be used: {problem}; check the disk and its rights", file=sys.stderr)
        return EXIT_USAGE


def _logger() -> logging.Logger:
    """One line an event on stderr: time, level, word, sentence. journald and people both read that.

    What libraries warn of goes there in the same form, with its traceback; so does whatever ends a thread.
    """
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("spore")
    logger.handlers[:] = [handler]
    logger.setLevel(LEVELS.get(os.environ.get("SPORE_LOG_LEVEL", "info"), logging.INFO))
    logger.propagate = False
    others = logging.getLogger()
    others.handlers[:] = [handler]
    others.setLevel(logging.WARNING)
    threading.excepthook = lambda ended: logger.error("fault: %s", _words_of_thread(ended), exc_info=ended.exc_value)
    return logger


def _words_of_thread(ended: threading.ExceptHookArgs) -> str:
    name = ended.thread.name if ended.thread is not None else "without a name"
    return f"the thread {name} ended: {ended.exc_type.__name__}: {ended.exc_value}"


def unexpected(report: Callable[[Report], None]) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """What the event loop does with an exception that nobody awaits: a fault like any other, and its traceback."""

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        problem = context.get("exception")
        if problem is not None:
            sentence = f"{context['message']}: {type(problem).__name__}: {problem}"
            report(Report("error", "fault", sentence))
        loop.default_exception_handler(context)

    return handle


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """One agent for a folder, and a folder on a local disk: SQLite and the WAL trust their locks and syncs."""
    if not directory.is_dir():
        raise StartRefused(f"there is no folder {directory}; make one with `spore init` or `spore join`")
    network = network_file_system(directory)
    if network is not None:
        raise StartRefused(
            f"{directory} lies on a network file system ({network}); the node's folder must be on a local disk, only "
            "its root may be shared"
        )
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartRefused(f"another agent runs on {directory}; stop it first") from None
        yield


def _load(directory: Path) -> tuple[Identity, Fleet]:
    fleet = load_fleet(directory / HOSTS_FILE_NAME)
    identity = Identity.load(directory, now=time.time(), cluster=fleet.cluster)
    if identity.node not in fleet.hosts and not identity.facts.ephemeral:
        raise StartRefused(
            f"node {identity.node} is not in {directory / HOSTS_FILE_NAME}; add it under hosts, or join with an "
            "ephemeral token"
        )
    return identity, fleet


async def _serve(directory: Path, identity: Identity, fleet: Fleet, logger: logging.Logger) -> int:
    def report(report: Report) -> None:
        logger.log(LEVELS.get(report.level, logging.INFO), "%s: %s", report.event, report.message)

    with Notifier.from_environment(os.environ) as notifier:
        agent = Agent(directory, identity, fleet, os.environ, report)
        asyncio.get_running_loop().set_exception_handler(unexpected(agent.report))
        process = _Process(agent, notifier)
        try:
            await agent.start()
            return await process.run()
        finally:
            await agent.stop()


class _Process:
    """Signals and the service manager around one running agent."""

    def __init__(self, agent: Agent, notifier: Notifier) -> None:
        self.agent = agent
        self.notifier = notifier
        self.report = agent.report
        self.stopping = asyncio.Event()
        self.budget_seconds = 0.0
        try:
            self.announced = Announced(agent, self._stop)
        except ValueError as problem:
            raise StartRefused(str(problem)) from problem
        self.service = Service(agent, self.announced.facts)
        self.admin = AdminServer(agent.directory / "agent.sock", self.service)

    async def run(self) -> int:
        await self.admin.start()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.add_signal_handler(signal.SIGUSR1, self.announced.signalled)
        self.announced.start()
        watchdog = asyncio.create_task(self.notifier.keep_watchdog(self.agent.healthy))
        agent = self.agent
        self.notifier.ready(f"{agent.node} of {agent.fleet.cluster}")
        self.report(
            Report("info", "started", f"{agent.node} of {agent.fleet.cluster} listens on port {agent.listener.port}")
        )
        try:
            await self.stopping.wait()
            return await self._leave()
        finally:
            self.announced.stop()
            watchdog.cancel()
            await asyncio.gather(watchdog, return_exceptions=True)
            await self.admin.stop()
            self.service.close()

    def _stop(self) -> None:
        """The first signal begins the final flush; the second means now."""
        if self.stopping.is_set():
            self.report(Report("warning", "stopped_now", "a second signal: stopping without finishing the flush"))
            self._end_now()
        flush_seconds = self.agent.fleet.flush_seconds(self.agent.node)
        self.budget_seconds = self.announced.ending.budget_seconds(flush_seconds)
        self.stopping.set()
        end = threading.Timer(max(END_SECONDS, self.budget_seconds - END_SECONDS), self._end_now)
        end.daemon = True
        end.start()

    def _end_now(self) -> None:
        """Whatever still runs: everything accepted is in the log on the disk, and the provider waits for nobody."""
        logging.shutdown()
        os._exit(EXIT_UNSAFE if self.agent.replica.debts.own_open() else 0)

    def _reload(self) -> None:
        """Read the hosts file again; a bad one is reported and the one in force stays."""
        self.notifier.reloading()
        path = self.agent.directory / HOSTS_FILE_NAME
        try:
            fleet = load_fleet(path)
            if fleet.cluster != self.agent.fleet.cluster:
                raise StartRefused(f"{path} is of cluster {fleet.cluster}, this node is of {self.agent.fleet.cluster}")
        except (ConfigError, StartRefused, OSError) as problem:
            self.report(Report("error", "not_reloaded", f"the hosts file in force stays: {problem}"))
        else:
            self.agent.change_fleet(fleet)
            self.report(Report("info", "reloaded", f"{path} is in force"))
        self.notifier.ready()

    async def _leave(self) -> int:
        seconds = self.budget_seconds
        self.notifier.stopping("flushing what is at risk")
        self.notifier.extend_timeout(seconds + 5)
        self.report(Report("info", "leaving", f"pushing what is at risk for at most {seconds:g} s"))
        result = await self.agent.leave(seconds)
        self._tell(result)
        return EXIT_UNSAFE if result.unsafe else 0

    def _tell(self, result: Exit) -> None:
        if result.farewell is not None:
            self.report(Report("info", "farewell", farewell_sentence(result.farewell)))
        if not result.unsafe:
            self.report(Report("info", "left", "everything accepted here is durable on other nodes"))
        named = result.farewell.named if result.farewell is not None else ()
        for unsafe in named:
            self.report(Report("error", "unsafe", unsafe_sentence(unsafe)))
        for record in result.unsafe if not named else ():
            self.report(Report("error", "unsafe", f"{record.name} ({record.size} bytes) is not durable"))
