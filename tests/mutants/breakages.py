"""Deliberate breakages: each is one line of the code made wrong, with the command that must notice.

Grouped by the headings of the lessons that this project was built on. `old` must stand in the file exactly once. A
command is either `seeds <scenario> <first> <last>` (the simulator) or arguments for pytest.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Breakage:
    """One breakage. `name` says in a sentence what the broken code would do."""

    heading: str
    name: str
    file: str
    old: str
    new: str
    command: str


LOSING, CORRUPTING = "Losing data", "Corrupting data"
FILLING, GOSSIP = "Filling disks", "Gossip and membership"

BREAKAGES: tuple[Breakage, ...] = (
    # --- Losing data ---
    Breakage(
        LOSING,
        "tells, pushes and answers before anything is on the disk",
        "protocol/context.py",
        "        self._started.append(Started(self._seq, batch, then, failed or self._shrug))",
        "        then()\n        self._started.append(Started(self._seq, batch, lambda: None, failed or self._shrug))",
        "seeds crash 1 2",
    ),
    Breakage(
        LOSING,
        "sends the receipt before the file has its name",
        "protocol/receiving.py",
        "            self.publish(complete, incoming)\n",
        "            rows = Rows(holdings=tuple(self.ctx.holding(r.digest, True) for r in complete))\n"
        "            self.ctx.commit(Batch(rows), lambda: self._committed(rows, complete, incoming))\n"
        "            self.publish(complete)\n",
        "seeds crash 1 2",
    ),
    Breakage(
        LOSING,
        "sends the receipt before the holding is committed",
        "protocol/receiving.py",
        "        self.ctx.commit(batch, done, lambda error: self._uncommitted(event, incoming, error))",
        "        done()\n        self.ctx.commit(batch, lambda: None)",
        "seeds crash 1 2",
    ),
    Breakage(
        LOSING,
        "counts receipts by the node that sent them: an NFS pair counts twice",
        "protocol/debts.py",
        "            debt.receipts[holding.store] = self._seat(holding)",
        "            debt.receipts[holding.node.encode()] = self._seat(holding)",
        "seeds crash 1 12",
    ),
    Breakage(
        LOSING,
        "counts the origin's own store as a receipt",
        "protocol/debts.py",
        "        if holding.store == debt.origin_store:\n            return\n",
        "",
        "seeds crash 1 2",
    ),
    Breakage(
        LOSING,
        "lets the WAL entry go after the first receipt",
        "protocol/debts.py",
        "        if not self._is_durable(debt.record, debt.receipts, 0, 0):",
        "        if not debt.receipts:",
        "seeds crash 1 2",
    ),
    Breakage(
        LOSING,
        "drops older versions before the newest is durable",
        "protocol/retention.py",
        "        if len(ranked) <= keep or (kind is not None and not self.debts.enough(newest, 0, 0)):",
        "        if len(ranked) <= keep:",
        "tests/test_replica_retention.py",
    ),
    Breakage(
        LOSING,
        "removes bytes that another name still needs",
        "protocol/retention.py",
        "            if not kept:\n",
        "            if True:\n",
        "tests/test_replica_retention.py",
    ),
    Breakage(
        LOSING,
        "leaves bytes put again to the node that accepted them first",
        "protocol/accepting.py",
        "        return stays or self._protected(put.digest) or self.debts.enough(current, 0, 0)",
        "        return True",
        "seeds convergence 1 20",
    ),
    Breakage(
        LOSING,
        "leaves without naming what only this node has",
        "protocol/replica.py",
        "        self.ctx.emit(Exit(tuple(debt.record for debt in own)))",
        "        self.ctx.emit(Exit(()))",
        "tests/test_replica_waiting.py tests/test_replica_pushing.py seeds first-light 1 20",
    ),
    Breakage(
        LOSING,
        "stamps a new version by the wall clock alone",
        "protocol/accepting.py",
        "self._put_version(put, self.ctx.clock.stamp(self.ctx.now_ms, above=current.hlc if current else 0))",
        "self._put_version(put, self.ctx.now_ms << 16)",
        "seeds crash 1 6",
    ),
    Breakage(
        LOSING,
        "forgets at the start what the WAL still promises",
        "protocol/replica.py",
        "            self.ctx.clock.restate(min(entry.record.hlc, event.last_hlc) or entry.record.hlc)\n"
        "            self._restore(entry)\n",
        "            self.ctx.clock.restate(min(entry.record.hlc, event.last_hlc) or entry.record.hlc)\n",
        "seeds crash 1 12",
    ),
    Breakage(
        LOSING,
        "appends to the WAL without syncing it",
        "storage/wal.py",
        "            self._files.fdatasync(current.fd)",
        "            pass",
        "-x tests/test_power_loss_wal.py",
    ),
    # --- Corrupting data ---
    Breakage(
        CORRUPTING,
        "takes a chunk without comparing its digest",
        "storage/partials.py",
        "        if chunk_digest(chunk) != self._leaves[index]:",
        "        if False:",
        "-x tests/test_staging.py",
    ),
    Breakage(
        CORRUPTING,
        "serves a file that was changed since it was accepted",
        "storage/blobs.py",
        "        if now != place_stamp(self.place):",
        "        if False:",
        "-x tests/test_publication.py tests/test_acceptance.py tests/test_bulk.py",
    ),
    Breakage(
        CORRUPTING,
        "does not sync the folder of a published file",
        "storage/publication.py",
        "        self._files.fsync_dir(self._store.root / parent)\n",
        "",
        "-x tests/test_power_loss_store.py",
    ),
    Breakage(
        CORRUPTING,
        "lets an older version that arrives late take the file's name",
        "protocol/receiving.py",
        "if kind is None or (newest is not None and newest.order > record.order and newest.digest != record.digest):",
        "if kind is None:",
        "seeds crash 1 12",
    ),
    Breakage(
        CORRUPTING,
        "takes a superseded file for a new version at the next scan",
        "protocol/retention.py",
        "        forget = tuple(place.path for place in removable)",
        "        forget = tuple(place.path for place in gone)",
        "seeds crash 1 12",
    ),
    # --- Filling disks ---
    Breakage(
        FILLING,
        "takes bytes for others although the disk is at its cap",
        "protocol/receiving.py",
        '        if not self.members.own.accepting:\n            return f"the disk of {self.ctx.node} is at its cap"\n',
        "",
        "seeds disk-full 1 3",
    ),
    Breakage(
        FILLING,
        "reserves room without looking at the cap",
        "storage/room.py",
        "        if not self._accepting or used_bytes > cap_bytes:",
        "        if not self._accepting:",
        "-x tests/test_room.py",
    ),
    Breakage(
        FILLING,
        "never gives back what a transfer reserved",
        "protocol/receiving.py",
        "        self.ctx.emit(Unreserve(incoming.peer, incoming.transfer))\n\n    # --- upkeep ---",
        "        pass\n\n    # --- upkeep ---",
        "tests/test_replica_receiving.py",
    ),
    Breakage(
        FILLING,
        "keeps receiving for a sender that is gone",
        "protocol/receiving.py",
        "x.peer == peer and not self._is_publishing(x)]:\n            self._close(incoming)\n",
        "x.peer == peer and not self._is_publishing(x)]:\n            pass\n",
        "tests/test_replica_receiving.py",
    ),
    # --- Gossip and membership ---
    Breakage(
        GOSSIP,
        "remembers as seen what failed to be committed",
        "protocol/context.py",
        "            self._hide(started.batch)\n            if started.seq >= first:",
        "            if started.seq >= first:",
        "seeds disk-full 1 4",
    ),
    Breakage(
        GOSSIP,
        "offers artifacts to nodes that are excluded",
        "protocol/placement.py",
        "        if member.accepting and not member.excluded and member.store != own_store:",
        "        if member.accepting and member.store != own_store:",
        "seeds crash 1 2",
    ),
    Breakage(
        GOSSIP,
        "lets versions below a tombstone live",
        "protocol/retention.py",
        "            if version.state is State.DELETED:\n                return",
        "            if False:\n                return",
        "seeds first-light 1 10",
    ),
    Breakage(
        GOSSIP,
        "does not say that a file it held is gone",
        "protocol/accepting.py",
        "        rows = Rows(holdings=() if others or not held else (self.ctx.holding(place.digest, False),))",
        "        rows = Rows()",
        "seeds first-light 1 20",
    ),
    Breakage(
        GOSSIP,
        "gives a node up after one failed dial",
        "protocol/membership.py",
        "            state.next_dial_ms = self.ctx.now_ms + state.backoff_ms",
        "            state.next_dial_ms = self.ctx.now_ms + (1 << 40)",
        "seeds first-light 1 12",
    ),
    Breakage(
        GOSSIP,
        "follows a clock that is years ahead",
        "protocol/clock.py",
        "        if stamp_ms(hlc) <= now_ms + FUTURE_MS_MAX:",
        "        if True:",
        "tests/test_clock.py",
    ),
    Breakage(
        GOSSIP,
        "judges durability without its own store instead of the origin's",
        "protocol/debts.py",
        "        return self.members.seats(self._origin_store(record))",
        "        return self.members.seats(self.ctx.store)",
        "seeds crash 1 12",
    ),
    Breakage(
        GOSSIP,
        "takes names that lead out of the root",
        "protocol/names.py",
        "        if part in NOT_PARTS:",
        "        if False:",
        "-x tests/test_names.py",
    ),
)
