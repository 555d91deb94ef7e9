"""Real games of a small board game, played into a live SQLite database: what self-play nodes of the demo do.

Four in a row on five columns of four, both sides at random but for taking a win in one. A game is a transaction: the
table of moves and the table of results always agree, which a torn copy would not.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from random import Random

COLUMNS, ROWS, LINE = 5, 4, 4
GAME_SECONDS = 0.02  # a pause between games, as a network's inference would make

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS games (id INTEGER PRIMARY KEY, winner INTEGER, length INTEGER)",
    "CREATE TABLE IF NOT EXISTS moves (game INTEGER, ply INTEGER, column INTEGER)",
)

Board = list[list[int]]  # columns of pieces, bottom first


def play(random: Random) -> tuple[list[int], int]:
    """One game: the columns played in order, and who won (1, 2, or 0 for a draw)."""
    board: Board = [[] for _ in range(COLUMNS)]
    moves: list[int] = []
    player = 1
    while open_columns := [c for c in range(COLUMNS) if len(board[c]) < ROWS]:
        column = next((c for c in open_columns if wins(board, c, player)), random.choice(open_columns))
        won = wins(board, column, player)
        board[column].append(player)
        moves.append(column)
        if won:
            return moves, player
        player = 3 - player
    return moves, 0


def wins(board: Board, column: int, player: int) -> bool:
    """Whether dropping a piece in this column makes a line."""
    row = len(board[column])
    return any(
        1 + _run(board, column, row, dc, dr, player) + _run(board, column, row, -dc, -dr, player) >= LINE
        for dc, dr in ((1, 0), (0, 1), (1, 1), (1, -1))
    )


def _run(board: Board, column: int, row: int, dc: int, dr: int, player: int) -> int:
    count = 0
    column, row = column + dc, row + dr
    while 0 <= column < COLUMNS and 0 <= row < len(board[column]) and board[column][row] == player:
        count += 1
        column, row = column + dc, row + dr
    return count


class SelfPlay:
    """Plays into one database, from `start` to `stop`, in a thread."""

    def __init__(self, database: Path, seed: int) -> None:
        self.database = database
        self.games = 0
        self._random = Random(seed)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._play_on, name=f"self-play {database.name}", daemon=True)

    def start(self) -> None:
        self.database.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()

    def _play_on(self) -> None:
        with closing(sqlite3.connect(self.database, timeout=30)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS games (id INTEGER PRIMARY KEY, winner INTEGER, length INTEGER)"
            )
            connection.execute("CREATE TABLE IF NOT EXISTS moves (game INTEGER, ply INTEGER, column INTEGER)")
            connection.commit()
            while not self._ending.wait(GAME_SECONDS):
                self._record(connection, *play(self._random))

    def _record(self, connection: sqlite3.Connection, moves: list[int], winner: int) -> None:
        with connection:
            game = connection.execute(
                "INSERT INTO games (winner, length) VALUES (?, ?)", (winner, len(moves))
            ).lastrowid
            rows = [(game, ply, column) for ply, column in enumerate(moves)]
            connection.executemany("INSERT INTO moves VALUES (?, ?, ?)", rows)
        self.games += 1


def count_games(database: Path) -> int:
    """The games in a copy of such a database. Raises ValueError when it is damaged or not of one moment."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as connection:
        verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
        games, plies = connection.execute("SELECT count(*), coalesce(sum(length), 0) FROM games").fetchone()
        moves = connection.execute("SELECT count(*) FROM moves").fetchone()[0]
    if verdict != "ok" or plies != moves:
        raise ValueError(f"{database} is damaged: integrity {verdict}, {plies} plies in games, {moves} in moves")
    return int(games)
