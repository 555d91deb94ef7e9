"""A simulated node: the real core, driven on simulated disks and network.

Performs every effect in order, as the agent does, and may die between any two of them: `fuse` counts down at each
effect and at each step of a commit or a publication, and at zero the process is gone. What survives is what the disks
say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from protocol import effects as f
from protocol.effects import Entry
from protocol.events import (
    Boot,
    DiskChanged,
    Event,
    HeldChecked,
    Indexed,
    MarkSeen,
    Published,
    Reserved,
    Scanned,
    Timer,
    Withdrawn,
)
from protocol.messages import Hello, Lacking, Message, RowsMessage
from protocol.replica import Replica
from protocol.spreading import pages
from protocol.values import Digest, NodeId, Parcel, Place, RecordKey
from protocol.view import NOTHING, Base
from simulations.chance import between
from simulations.commits import SimCommitter
from simulations.depot import Publishing, SimDepot
from simulations.disks import EPOCH_MS, LocalDisk, SimFile, StoreDisk
from simulations.memory import Tables
from simulations.schedule import Act
from simulations.surroundings import Surroundings
from simulations.watching import Watching

HEARTBEAT_MS = 8_000  # a process that stands still for longer loses its sessions
ROOM_MS = 2_000  # the disk is looked at this often
ROOM_TOLD_MS = 10_000  # and told at least this often
RESERVE_MS = 2
PUBLISH_MS = 6  # fdatasync and rename of a batch
PAGE_ROWS = 200  # smaller than in the agent, so that small runs stream several pages


class Died(Exception):
    """The process of this node ends here and now."""


class SimNode:
    """One node, through all its lives."""

    def __init__(self, name: NodeId, around: Surroundings, store: StoreDisk, disk: LocalDisk, random: Random) -> None:
        self.name = name
        self.around = around
        self.store = store
        self.disk = disk
        self.random = random
        self.depot = SimDepot(name, store, disk, around.fleet.routing_for(name), random)
        self.depot.on_trouble = self.bite
        self.watching = Watching(self)
        self.depot.recorded = lambda path, inode: (path, inode) in self.watching.claims.recorded
        self.replica: Replica
        self.committer: SimCommitter
        self.up = False
        self.gone = False
        self.life = 0
        self.seed = 0  # of the next life, where it is drawn before
        self.fuse = 0  # effects left to live; 0: no crash is planned
        self.power = False  # whether the planned crash takes what was not synced
        self.io_fails = False
        self.clock_offset_ms = 0
        self.stalled = False  # the process stands still; what happens meanwhile happens to it afterwards
        self.newer = False  # it runs a later version, which says more than the others understand
        self._image: tuple[dict[str, SimFile], tuple[Tables, int, dict[RecordKey, Entry]]] | None = None
        self._waiting: list[tuple[int, Act, tuple[Any, ...]]] = []  # for the end of a stall
        self.expected: dict[tuple[NodeId, int], None] = {}
        self.receiving_now: dict[tuple[NodeId, int], None] = {}
        self._anchor_ms = 0
        self._timers: dict[str, int] = {}
        self._told_room: tuple[bool, bool] | None = None
        self._told_room_ms = 0
        self._perform: dict[type, Callable[[Any], None]] = self._table()

    # --- life ---

    def start(self, base: Base = NOTHING) -> None:
        """A new process on what survived. `base`: whom it knows to be alive, in a fleet that has long settled."""
        if self.up or self.gone:
            return
        self.up = True
        self.life += 1
        self.disk.boots += 1
        self._anchor_ms = self.clock_offset_ms
        self._timers.clear()
        self._told_room = None
        pending = tuple(self.depot.followed(self.disk.pending()))
        if pending:
            self.bite("booted_with_pending")
        self.around.oracle.booted(self.name, pending)
        seed = self.seed or self.random.getrandbits(32)
        self.seed = 0
        self.replica = Replica(
            self.name, self.store.store, self.around.fleet, self.disk.catalogue, Random(seed), self.disk.boots, base
        )
        self.committer = SimCommitter(self, self.disk, self.random, self.around.oracle)
        self.handle(Boot(pending, self.disk.catalogue.last_hlc()))
        self._look_at_room()
        self.watching.start()

    def crash(self, power: bool) -> None:
        """The process dies; with `power` the machine does, and what was not synced is a matter of chance."""
        if not self.up:
            return
        self.bite("power_lost" if power else "killed")
        self._end(power, quick=not power)

    def _end(self, power: bool, quick: bool) -> None:
        self.up = False
        self.life += 1
        self.fuse = 0
        self.stalled = False
        self._waiting.clear()
        self.expected.clear()
        self.receiving_now.clear()
        self.around.trace.note(self.around.schedule.now_ms, self.name, "down")
        lost = self.disk.crash(self.committer.unsynced, power, self.random)
        if lost:
            self.bite("wal_tail_lost")
        self.store.crash(self.name, power, self.random, self.around.schedule.now_ms)
        self.depot.forget_reservations()
        self.around.network.node_down(self.name, quick)
        self.around.oracle.down(self.name)

    def vanish(self) -> None:
        """The machine and its disk are gone for good."""
        if self.gone:
            return
        self.crash(power=True)
        self.gone = True
        self.store.gone = not self.store.shared  # a shared root lies on a server that outlives its clients
        self.around.oracle.vanished(self.name)
        self.bite("vanished")

    def stall(self, duration_ms: int, clock_too: bool) -> None:
        """Stand still: swapped out or stopped; with `clock_too` the machine was suspended, and its clock with it."""
        if not self.up or self.stalled:
            return
        self.stalled = True
        self.bite("clock_frozen" if clock_too else "stalled")
        if duration_ms > HEARTBEAT_MS:
            self.around.network.lose_touch(self.name)
        self.around.schedule.after(duration_ms, self._go_on, self.life, duration_ms if clock_too else 0)

    def _go_on(self, life: int, missed_ms: int) -> None:
        """Everything that piled up happens now, in its order."""
        if self.life != life:
            return
        self._anchor_ms -= missed_ms
        self.stalled = False
        waiting, self._waiting = self._waiting, []
        for life_of_act, act, args in waiting:
            self._in_life(life_of_act, act, args)

    def take_image(self) -> None:
        """Remember this machine as it is now; a store that others share is not one machine's to set back."""
        if not self.store.shared and not self.gone:
            self._image = (self.store.image(), self.disk.image())

    def set_back(self) -> bool:
        """The machine is restored from its old image, and has forgotten all that came after."""
        if self._image is None or self.gone:
            return False
        self.crash(power=True)
        files, local = self._image
        self.store.set_back(files)
        self.disk.set_back(local)
        self.around.oracle.set_back(self.name)
        self.bite("set_back")
        return True

    def lives(self, life: int) -> bool:
        return self.up and self.life == life

    def later(self, delay_ms: int, act: Act, *args: Any) -> None:
        """Do something in this life, if it lasts so long."""
        if self.up:
            self.around.schedule.after(delay_ms, self._in_life, self.life, act, args)

    def _in_life(self, life: int, act: Act, args: tuple[Any, ...]) -> None:
        """Run a step in which the process may die."""
        if self.up and self.life == life:
            if self.stalled:
                self._waiting.append((life, act, args))
                return
            try:
                act(*args)
            except Died:
                self.crash(self.power)

    def burn(self, knob: str) -> None:
        """One more point at which a crash may fall."""
        if self.fuse:
            self.fuse -= 1
            if not self.fuse:
                self.bite(knob)
                raise Died

    def bite(self, knob: str) -> None:
        self.around.bites[knob] = self.around.bites.get(knob, 0) + 1

    def clock_ms(self) -> int:
        """The wall clock as it was at the start, moved on by a monotonic one: it never jumps within a life."""
        return EPOCH_MS + self.around.schedule.now_ms + self._anchor_ms

    # --- the core ---

    def hello(self) -> Hello:
        return self.replica.hello()

    def handle(self, event: Event) -> None:
        """Let the core decide and perform what it says, unless the process dies between two effects."""
        if not self.up:
            return
        if self.stalled:
            self._waiting.append((self.life, self.handle, (event,)))
            return
        now_ms = self.around.schedule.now_ms
        self.around.trace.note(now_ms, self.name, type(event).__name__)
        try:
            for effect in self.replica.handle(event, EPOCH_MS + now_ms + self._anchor_ms):
                if self.fuse:
                    self.burn("crash_between_effects")
                self._perform[type(effect)](effect)
        except Died:
            self.crash(self.power)

    def _table(self) -> dict[type, Callable[[Any], None]]:
        return {
            f.Log: self._durable,
            f.Commit: self._durable,
            f.Release: self._release,
            f.Send: self._send,
            f.Dial: lambda effect: self.around.network.dial(self.name, effect.peer),
            f.Hangup: lambda effect: self.around.network.hangup(self.name, effect.peer, effect.why),
            f.Admit: self._admit,
            f.StreamRows: self._stream_rows,
            f.StreamPrints: self._stream_prints,
            f.ComparePrints: self._compare_prints,
            f.Upload: lambda effect: self.around.streams.upload(self, effect),
            f.Abandon: lambda effect: self.around.streams.abandon(self, effect),
            f.Fetch: lambda effect: self.around.streams.fetch(self, effect),
            f.Pull: lambda effect: self.around.streams.pull(self, effect),
            f.CutPull: lambda effect: self.around.streams.cut(self, effect.number),
            f.Reserve: self._reserve,
            f.Unreserve: self._unreserve,
            f.Publish: self._publish,
            f.Unlink: self._unlink,
            f.CheckHeld: self._check_held,
            f.Mark: lambda effect: self.store.marks.update({self.name: effect.nonce}),
            f.LookForMark: lambda effect: self.later(RESERVE_MS, self._mark_seen, effect),
            f.Share: lambda effect: None,
            f.Index: lambda effect: self.later(between(self.random, 0, PUBLISH_MS), self._index, effect),
            f.SetTimer: self._set_timer,
            f.Answer: self._answer,
            f.Scan: self._scan,
            f.Report: self._report,
            f.Exit: self._exit,
        }

    # --- effects ---

    def _durable(self, effect: f.Log | f.Commit) -> None:
        if isinstance(effect, f.Log):
            self.around.oracle.logging(self.name, effect.entry.record)
        self.committer.add(effect)

    def _release(self, effect: f.Release) -> None:
        for record in effect.records:
            self.around.oracle.released(self.name, record)
        self.committer.release(effect.records)

    def _send(self, effect: f.Send) -> None:
        message = effect.message
        self.around.oracle.sending(self.name, effect.peer, message)
        frame = self.around.network.send(self.name, effect.peer, message)
        self.around.trace.note(
            self.around.schedule.now_ms, self.name, f"> {effect.peer} {type(message).__name__}", frame
        )

    def _admit(self, effect: f.Admit) -> None:
        self.around.network.admit(self.name, effect.peer, effect.instance, effect.refusal)

    def _stream_rows(self, effect: f.StreamRows) -> None:
        if effect.only is None:
            found = list(self.disk.catalogue.rows_pages(PAGE_ROWS))
        else:
            found = pages(self.disk.catalogue.rows_of(effect.only))
        self._send_slowly(effect.peer, [RowsMessage(page) for page in found])

    def _stream_prints(self, effect: f.StreamPrints) -> None:
        self._send_slowly(effect.peer, list(self.disk.catalogue.prints_pages(PAGE_ROWS)))

    def _compare_prints(self, effect: f.ComparePrints) -> None:
        rows, lacking = self.disk.catalogue.compare(effect.prints)
        messages: list[Message] = [RowsMessage(page) for page in pages(rows)] if rows else []
        self._send_slowly(effect.peer, [*messages, Lacking(lacking)] if lacking else messages)

    def _send_slowly(self, peer: NodeId, messages: Sequence[Message]) -> None:
        for index, message in enumerate(messages):
            self.later(index * 3, self._send, f.Send(peer, message))

    def _reserve(self, effect: f.Reserve) -> None:
        self.around.oracle.reserving(self.name, effect.peer, self._told_room)
        delay = between(self.random, 0, RESERVE_MS)
        self.later(delay, self._reserved, effect.peer, effect.transfer, effect.parcels)

    def _reserved(self, peer: NodeId, transfer: int, parcels: tuple[Parcel, ...]) -> None:
        missing, refused = self.depot.reserve(peer, transfer, parcels)
        self.around.oracle.reserved(self.name, self.store.used_bytes(), self.depot.cap_bytes(), refused)
        if peer != self.name and not all(refused):
            self.expected[peer, transfer] = None
        self.handle(Reserved(peer, transfer, missing, refused))

    def _unreserve(self, effect: f.Unreserve) -> None:
        self.expected.pop((effect.peer, effect.transfer), None)
        self.receiving_now.pop((effect.peer, effect.transfer), None)
        self.depot.unreserve(effect.peer, effect.transfer)

    def _publish(self, effect: f.Publish) -> None:
        self.around.oracle.publishing(self.name, effect)
        self.later(between(self.random, 1, PUBLISH_MS), self._rename, effect)

    def _rename(self, effect: f.Publish) -> None:
        self.burn("crash_in_publish")
        work = self.depot.rename(effect.items, self.around.schedule.now_ms)
        for item in work.renamed:
            self.watching.published(item.path)
        for path, record in work.local:
            self.watching.in_the_way(path, self.around.fleet.kind_of(record.name))
        self.later(between(self.random, 1, PUBLISH_MS), self._sync, effect.op, work)

    def _sync(self, op: int, work: Publishing) -> None:
        self.burn("crash_in_publish")
        done, failed = self.depot.sync(work, self.around.schedule.now_ms)
        self.burn("crash_in_publish")
        self.handle(Published(op, tuple(done), tuple(failed), tuple(work.moved)))

    def _unlink(self, effect: f.Unlink) -> None:
        self.around.oracle.unlinking(self.name, effect.places)
        self.depot.unlink(effect.places)
        for place in effect.places:
            if not place.private and place.path not in self.store.files:
                self.later(0, self.handle, Withdrawn(place, "it was removed with the last version that needed it"))

    def _mark_seen(self, effect: f.LookForMark) -> None:
        found = self.store.marks.get(effect.peer) == effect.nonce
        self.handle(MarkSeen(effect.peer, effect.nonce, found))

    def _index(self, effect: f.Index) -> None:
        file = self.store.files.get(effect.path)
        stands = file is not None and file.digest == effect.record.digest and not file.synced_by
        known = stands and file is not None and self.depot.recorded(effect.path, file.inode)
        place = replace(self.store.place(effect.path, False), published=True) if known else None
        self.handle(Indexed(effect.record, place))

    def _check_held(self, effect: f.CheckHeld) -> None:
        self.later(between(self.random, 0, RESERVE_MS), self._held_checked, effect)

    def _held_checked(self, effect: f.CheckHeld) -> None:
        held = tuple(digest for digest in effect.stays if self.reads(digest))
        self.handle(HeldChecked(effect.peer, effect.asked, held))

    def _set_timer(self, effect: f.SetTimer) -> None:
        self._timers[effect.token] = effect.at_ms
        self.later(effect.at_ms - self.clock_ms(), self._fire, effect)

    def _fire(self, timer: f.SetTimer) -> None:
        if self._timers.get(timer.token) == timer.at_ms:
            del self._timers[timer.token]
            self.handle(Timer(timer.token))

    def _answer(self, effect: f.Answer) -> None:
        self.around.oracle.answered(self.name, effect)

    def _scan(self, effect: f.Scan) -> None:
        self.later(between(self.random, 1, 20), self._scanned, effect)

    def _scanned(self, effect: f.Scan) -> None:
        page, last = self.disk.catalogue.scan(effect.after, effect.limit)
        self.handle(Scanned(effect.op, page, last))

    def _report(self, effect: f.Report) -> None:
        self.around.trace.note(self.around.schedule.now_ms, self.name, f"{effect.level} {effect.event}")
        self.around.oracle.reported(self.name, effect)

    def _exit(self, effect: f.Exit) -> None:
        """The final flush is over: the process ends of its own will."""
        self.bite("left")
        self.around.oracle.left(self.name, effect.unsafe)
        self.later(0, self._end, False, True)

    # --- the disk, seen from the process ---

    def _look_at_room(self) -> None:
        now = self.around.schedule.now_ms
        room, excess = (self.depot.look(), self.depot.local_room()), self.depot.excess_bytes()
        if excess or room != self._told_room or now - self._told_room_ms >= ROOM_TOLD_MS:
            if self._told_room is not None and not room[0]:
                self.bite("cap_reached")
            self._told_room, self._told_room_ms = room, now
            self.handle(DiskChanged(*room, self.store.capacity_bytes, self.store.used_bytes(), excess))
        self.later(ROOM_MS, self._look_at_room)

    def reads(self, digest: Digest) -> bool:
        """Whether this node can serve a digest now; places that are no longer true are withdrawn."""

        def withdrawn(place: Place) -> None:
            self.later(0, self.handle, Withdrawn(place, "the file was changed or removed"))

        return self.depot.readable(digest, withdrawn)
