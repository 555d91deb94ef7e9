"""One artifact on its way to several nodes at once, seen by one of them: which piece to ask of whom next.

Who fetches the same bytes tells the others which pieces it has and which it has asked for; whole holders (*seeds*, the
source among them) need no telling. From that alone each decides, and nobody leads:

| a piece that | is asked of | by |
|---|---|---|
| a fetcher of our own domain has | it, the rarest pieces first | everybody |
| only seeds have | a seed | its owner: so the source sends each piece about once |
| lies in other domains only | a fetcher there, else a seed | its owner here: so it crosses into each domain once |

Owners follow from the sorted names of the fetchers (`Shares`), so all compute the same one. An owner takes new pieces
only while fewer than a sixteenth of the artifact lie with it alone: what a node with a small uplink cannot pass on, it
is not given, and others take its share. So the source's uplink is always used, the others carry as much as they can,
and a death costs a sixteenth at most. (Mutualcast, Li, Chou and Zhang 2005, has the same optimum with rates that are
known; rarest first is BitTorrent's, Cohen 2003.) Sets of pieces are bits of an integer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from protocol.pieces import Layout, Shares, Spread, circle_of
from protocol.values import NodeId, Stripe

ALONE_SHARE = 16  # new pieces are taken while less than this part lies with us alone: what a death may cost
ASKS_MAX = 12  # pieces under way to us: more than fill any link, few enough for a thread each
ASKS_PER_SOURCE = 2  # the next piece is asked for before the last has come
SOURCES_FEW = 4  # with more sources than this one piece from each is enough
REST_MS = 1_000  # a source that failed is left alone for so long, doubled each time
REST_MS_MAX = 30_000
FAILURES_MAX = 6  # in a row, over half a minute: what only such a source has will not come from it
UNREACHED_FAILURES = 3  # a dial that failed counts for as many: it has waited for its own time-out
SLOW_MS_MIN = 500  # a piece under way for longer, and for three times as long as usual, is slow
SILENT_MS_MIN = 2_000  # a fetcher not heard for longer is not counted on; what has not changed is said each 1.5 s
STALL_MS = 3_000  # nothing under way, and nothing that the rules give us: then anything from anybody
SPEAK_MS_MIN = 200  # fetchers say what they have so often at most: a fifth of a second of bytes lies idle at most
SPEAK_MS_MAX = 10_000
SPEAK_SHARE = 50  # and a fetch that takes long is spoken of less often: fifty times in the time it has taken so far
NEIGHBOURS_MAX = 16  # up to so many fetchers all hear each other; above, on circles at distances 1, 2, 4, …
SEEDS_MAX = 8  # near us, and as many elsewhere: more only share the same link


@dataclass(slots=True)
class Source:
    """Somebody who has pieces: a seed, or another fetcher that we hear."""

    node: NodeId
    domain: str
    serves: bool = True  # it can be dialled
    seed: bool = False
    have: int = 0
    asked: int = 0
    heard_ms: int = 0
    running: int = 0  # pieces under way from it
    piece_ms: int = 0  # what one has taken lately; 0: none has come
    failures: int = 0
    rests_until_ms: int = 0
    barred: bool = False  # it sent wrong bytes: nothing more is asked of it for this artifact

    def is_usable(self, now_ms: int) -> bool:
        """Whether something may be asked of it now."""
        return self.serves and not self.barred and self.rests_until_ms <= now_ms


@dataclass(slots=True)
class Ask:
    """One piece under way."""

    number: int
    piece: int
    source: NodeId
    since_ms: int


class Swarm:
    """Decides for one artifact that is being fetched here. Times are milliseconds of any steady clock."""

    def __init__(
        self,
        own: NodeId,
        domain: str,
        serves: bool,
        size: int,
        missing: Sequence[Stripe],
        random: Random,
        numbers: Iterator[int],
        now_ms: int,
    ) -> None:
        """`serves`: others can dial us. `missing` as `Reserved` tells it: no stripes mean everything. `numbers` are for
        asks: whoever runs several swarms gives them one iterator."""
        self.own = own
        self.domain = domain
        self.serves = serves
        self.layout = Layout(size)
        self.random = random
        self.have = 0
        self.sources: dict[NodeId, Source] = {}
        self.fetchers: dict[NodeId, tuple[str, bool]] = {}  # all others, heard or not: domain, and whether it serves
        self.asks: dict[int, Ask] = {}
        self.listed = False  # somebody has sent the chunk list: until then one piece is asked for at a time
        self.why = ""  # the last failure
        self._brought = 0  # pieces that no fetcher beside us had when they came
        self._numbers = numbers
        self._since_ms = self._idle_since_ms = now_ms
        self._shares: Shares | None = None
        self.holds(missing or (Stripe(0, self.layout.chunks),))

    # --- what is here ---

    def holds(self, missing: Sequence[Stripe]) -> None:
        """What staging says is missing now."""
        self.have = self.layout.without(missing)

    @property
    def complete(self) -> bool:
        return self.have == self.layout.full

    @property
    def asked(self) -> int:
        pieces = 0
        for ask in self.asks.values():
            pieces |= 1 << ask.piece
        return pieces

    # --- who is there ---

    def seed(self, node: NodeId, domain: str, serves: bool) -> None:
        """A node that holds all of it."""
        if self.fetchers.pop(node, None) is not None:
            self._shares = None
        source = self.sources.get(node)
        near = domain == self.domain
        alike = sum(s.seed and (s.domain == self.domain) == near for s in self.sources.values())
        if source is None and alike < SEEDS_MAX:
            source = self.sources[node] = Source(node, domain, serves)
        if source is not None and not source.seed:
            source.seed, source.have, source.asked = True, self.layout.full, 0
            self._shares = None

    def fetcher(self, node: NodeId, domain: str, serves: bool) -> bool:
        """A node that fetches it too; what it has, it says by itself. Whether that is news."""
        if node == self.own or node in self.fetchers or (node in self.sources and self.sources[node].seed):
            return False
        self.fetchers[node] = (domain, serves)
        self._shares = None
        return True

    def heard(self, node: NodeId, have: int, asked: int, now_ms: int) -> bool:
        """A fetcher says what it has now, and what is under way to it. Whether there is more to be had than before."""
        if node not in self.fetchers:
            return False
        domain, serves = self.fetchers[node]
        source = self.sources.setdefault(node, Source(node, domain, serves))
        news = have & ~source.have & ~self.have
        source.have, source.asked, source.heard_ms = have & self.layout.full, asked & self.layout.full, now_ms
        if source.have == self.layout.full:
            self.seed(node, domain, serves)
        return bool(news)

    def gone(self, node: NodeId) -> None:
        """It died, or does not hold the bytes any more."""
        if self.sources.pop(node, None) is not None or node in self.fetchers:
            self.fetchers.pop(node, None)
            self._shares = None

    def neighbours(self) -> list[NodeId]:
        """Whom to tell what we have: every fetcher, or, of many, some near us and some of all, the same both ways."""
        if len(self.fetchers) <= NEIGHBOURS_MAX:
            return sorted(self.fetchers)
        mates = [node for node, (domain, _) in self.fetchers.items() if domain == self.domain]
        return sorted({*circle_of(self.own, mates), *circle_of(self.own, list(self.fetchers))})

    def speak_ms(self, now_ms: int) -> int:
        """How often fetchers say what they have."""
        return min(SPEAK_MS_MAX, max(SPEAK_MS_MIN, (now_ms - self._since_ms) // SPEAK_SHARE))

    def _speaks(self, source: Source, now_ms: int) -> bool:
        """Whether a fetcher was heard lately: what it has asked for, or is to bring, may be counted on."""
        return now_ms - source.heard_ms <= 3 * self.speak_ms(now_ms) + SILENT_MS_MIN

    # --- what becomes of an ask ---

    def got(self, number: int, now_ms: int) -> list[int]:
        """A piece is here; the asks for the same piece that are of no use any more."""
        ask = self._end(number)
        if ask is None:
            return []
        source, spent_ms = self.sources.get(ask.source), max(1, now_ms - ask.since_ms)
        if source is not None:
            source.failures = 0
            source.piece_ms = (source.piece_ms * 3 + spent_ms) // 4 if source.piece_ms else spent_ms
        spread = self._spread(now_ms)
        self.have |= 1 << ask.piece
        self._brought |= (1 << ask.piece) & ~self._beside_us(spread)
        return [other.number for other in self.asks.values() if other.piece == ask.piece]

    def failed(self, number: int, why: str, now_ms: int, for_ever: bool = False, unreached: bool = False) -> None:
        """A piece did not come: its source rests for a while, or for ever when it sent wrong bytes. One that is not
        reached at all is given up sooner: there are other ways to it (see docs/transports.md)."""
        ask = self._end(number)
        source = self.sources.get(ask.source) if ask else None
        self.why = why
        if source is not None:
            source.failures += UNREACHED_FAILURES if unreached else 1
            source.barred = source.barred or for_ever
            source.rests_until_ms = now_ms + min(REST_MS << min(source.failures - 1, 10), REST_MS_MAX)
            source.have = source.have if source.seed else 0  # it says anew what it has

    def cut(self, number: int) -> None:
        """We gave this one up ourselves."""
        self._end(number)

    def _end(self, number: int) -> Ask | None:
        ask = self.asks.pop(number, None)
        source = self.sources.get(ask.source) if ask else None
        if source is not None:
            source.running = max(0, source.running - 1)
        return ask

    # --- the decision ---

    def next(self, now_ms: int) -> list[Ask]:
        """What to ask for now; each is then under way until `got`, `failed` or `cut`."""
        asks: list[Ask] = []
        usable = self._usable(now_ms)
        per_source = ASKS_PER_SOURCE if len(usable) <= SOURCES_FEW else 1
        spread: Spread | None = None
        for running in range(per_source):
            for source in self._in_order([source for source in usable if source.running <= running]):
                if len(self.asks) >= self._asks_max(now_ms):
                    break
                spread = spread or self._spread(now_ms)
                piece = self._choose(source, spread, now_ms)
                if piece is not None:
                    asks.append(self._ask(source, piece, now_ms))
        if self.asks or not usable:
            self._idle_since_ms = now_ms
        return asks

    def _asks_max(self, now_ms: int) -> int:
        """Before the chunk list has come, one piece is asked for, or another one when that is slow."""
        return ASKS_MAX if self.listed else len(self.asks) + 1 if self._is_slow(now_ms) or not self.asks else 1

    def _ask(self, source: Source, piece: int, now_ms: int) -> Ask:
        ask = Ask(next(self._numbers), piece, source.node, now_ms)
        self.asks[ask.number] = ask
        source.running += 1
        return ask

    def _usable(self, now_ms: int) -> list[Source]:
        return [s for s in self.sources.values() if s.have and s.is_usable(now_ms)]

    def hopeless(self, now_ms: int) -> bool:
        """Whether nobody has anything that we lack: nothing is under way, and nothing may be asked for soon."""
        sources = [s for s in self.sources.values() if s.serves and not s.barred and s.failures < FAILURES_MAX]
        return not self.asks and not any(source.have & ~self.have for source in sources)

    def _in_order(self, usable: list[Source]) -> list[Source]:
        """Fetchers near us, fetchers elsewhere, seeds; equal ones by chance, or all would begin with the same. The
        chunk list is asked of a seed."""
        shuffled = self.random.sample(usable, len(usable))
        return sorted(shuffled, key=lambda s: (s.seed is self.listed, s.domain != self.domain, s.running))

    def _choose(self, source: Source, spread: Spread, now_ms: int) -> int | None:
        lacking = self.layout.full & ~self.have & ~self.asked
        if open_now := source.have & lacking:
            for allowed in self._allowed(source, spread, lacking, now_ms):
                if open_now & allowed:
                    return self._pick(spread.rarest(open_now & allowed))
            if self._is_slow(now_ms, one_counts=not lacking & ~spread.near):
                return self._pick(spread.rarest(open_now))
        return None if lacking else self._once_more(source, now_ms)

    def _allowed(self, source: Source, spread: Spread, lacking: int, now_ms: int) -> Sequence[int]:
        """Sets of pieces that may be asked of this source, the better ones first."""
        near = source.domain == self.domain
        if near and not source.seed:
            return (lacking,)
        full = self._is_full(spread, now_ms)
        if spread.near_seed and not near and not full:
            return ()  # it need not come from afar
        new_here = lacking & ~(spread.near | spread.near_asked)
        new = new_here if near else new_here & ~(spread.far | spread.far_asked)
        if near and not new:
            return (lacking,)  # a seed that nobody needs for anything new fills gaps
        if not source.seed or not new:
            own, others = self._parts(self._share().owned, spread, now_ms)
            return (new_here & own, new_here & others)
        if full:
            return ()
        own, others = self._parts(self._share().owned if near else self._share().first, spread, now_ms)
        return (new & own, new & others)

    def _parts(self, shares: dict[NodeId, int], spread: Spread, now_ms: int) -> tuple[int, int]:
        """Our own share; then those of owners that cannot pass on what they have, or are silent, and, when our own is
        used up, of all that we hear."""
        own = shares.get(self.own, 0)
        once = spread.near_once if self._counts_mates(spread) else spread.once()
        once &= ~self.have
        done = bool(own) and not own & ~self.have & ~self.asked & ~(spread.near | spread.near_asked)
        others = 0
        for owner in self.sources.values():
            if done or self._is_stuck(owner, once, now_ms):
                others |= shares.get(owner.node, 0)
        return own, others

    def _is_stuck(self, owner: Source, once: int, now_ms: int) -> bool:
        return (owner.have & once).bit_count() * 2 >= self._alone_max() or not self._speaks(owner, now_ms)

    def _is_full(self, spread: Spread, now_ms: int) -> bool:
        """Whether as many pieces lie with us alone as may: they are not passed on as fast as they come."""
        if spread.full is None:
            spread.full = self._counts_full(spread, now_ms)
        return spread.full

    def _counts_full(self, spread: Spread, now_ms: int) -> bool:
        if not self.serves or not any(not s.seed and self._speaks(s, now_ms) for s in self.sources.values()):
            return False  # there is nobody to pass them on to
        beside_us = self._beside_us(spread)
        coming = sum(1 for ask in self.asks.values() if not beside_us >> ask.piece & 1)
        return (self._brought & ~beside_us).bit_count() + coming >= self._alone_max()

    def _beside_us(self, spread: Spread) -> int:
        """What the other fetchers of our domain have got; all, when there are none here, or a seed serves them here."""
        return spread.near_got if self._counts_mates(spread) else spread.near_got | spread.far_got

    def _counts_mates(self, spread: Spread) -> bool:
        mates = any(not source.seed and source.domain == self.domain for source in self.sources.values())
        return mates and not spread.near_seed

    def _alone_max(self) -> int:
        return max(2, self.layout.pieces // ALONE_SHARE)

    def _is_slow(self, now_ms: int, one_counts: bool = False) -> bool:
        """Whether all that is under way is slower than usual, or nothing has been under way for a while. One slow
        source counts when all is in our domain by now, and only waits to be passed on."""
        if not self.asks:
            return now_ms - self._idle_since_ms >= STALL_MS
        slow_ms = self._slow_ms()
        return (any if one_counts else all)(now_ms - ask.since_ms >= slow_ms for ask in self.asks.values())

    def _slow_ms(self) -> int:
        """Three times what the fastest source takes for a piece."""
        return max(SLOW_MS_MIN, 3 * min((s.piece_ms for s in self.sources.values() if s.piece_ms), default=0))

    def _once_more(self, source: Source, now_ms: int) -> int | None:
        """The last pieces, when who was asked is slow: the first of two answers counts."""
        slow_ms = self._slow_ms()
        for ask in self.asks.values():
            slow = now_ms - ask.since_ms >= slow_ms and ask.source != source.node
            if slow and source.have >> ask.piece & 1 and sum(x.piece == ask.piece for x in self.asks.values()) == 1:
                return ask.piece
        return None

    def _pick(self, pieces: int) -> int:
        """One of these by chance: the first at or after a random place."""
        start = self.random.randrange(self.layout.pieces)
        chosen = pieces >> start << start or pieces
        return (chosen & -chosen).bit_length() - 1

    def _share(self) -> Shares:
        if self._shares is None:
            known = {**self.fetchers, self.own: (self.domain, self.serves)}
            owners = {node: domain for node, (domain, serves) in known.items() if serves}
            seeded = [source.domain for source in self.sources.values() if source.seed]
            first = Shares.of(owners or {self.own: self.domain}, seeded, self.layout.pieces).first
            if self.domain not in owners.values():  # nobody here passes anything on: each brings what it needs
                owners[self.own] = self.domain
            self._shares = Shares(Shares.of(owners, seeded, self.layout.pieces).owned, first)
        return self._shares

    def _spread(self, now_ms: int) -> Spread:
        spread = Spread()
        for source in self.sources.values():
            near = source.domain == self.domain
            if near and not source.seed:
                spread.near_got |= source.have
            elif not source.seed:
                spread.far_got |= source.have
            if not source.is_usable(now_ms):
                continue
            if source.seed:
                spread.near_seed |= near
                continue
            asked = source.asked if self._speaks(source, now_ms) else 0
            spread.count(source.have)
            if near:
                spread.near_once = (spread.near_once & ~source.have) | (source.have & ~spread.near)
                spread.near, spread.near_asked = spread.near | source.have, spread.near_asked | asked
            else:
                spread.far, spread.far_asked = spread.far | source.have, spread.far_asked | asked
        return spread
