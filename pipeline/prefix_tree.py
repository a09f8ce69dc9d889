"""The prefix tree of one model: which shared prefixes are worth a mark, who writes them, and who waits until they can be read.

    enter -> Ticket            a call is known: it counts as a sure reader of every prefix on its path
    turn  -> Held | Wait | Go  its group has no key with room, see prefix_keys.py; somebody else is writing what this call could read; or it
                               may be sent, and may be the writer itself
    release                    calls that were held and have a key now: each asks for its turn again
    board -> Marks             it is sent now, with these marks
    begun                      its answer begins to come, as far as that can be seen: what it writes can be read
    land                       it came back: what it wrote can be read, or nothing was written and the next one writes

A prefix is marked where others will read it: calls that wait here, and as many as its past lets expect within the lifetime of an entry.
The marks are put on the blocks where the prompts part; of more than a request can carry, those that leave the least to be processed again.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from .prefix import Block, Lifetime, Mark, Marks, Path, Terms, send_order
from .prefix_keys import Claim, Group, KeyRing

_SMOOTH = 0.3
"""Weight of the newest gap between two uses of a prefix."""
_SPARE = 1.25
"""An entry should outlive the expected gap by this factor."""
_MOST_CANDIDATES = 64


@dataclass(slots=True, eq=False)
class _Node:
    """A prefix, by the digest of its last block."""

    waiting: int = 0
    """Calls that are known and not sent yet."""
    seen: int = 0
    last_ms: int = -1
    gap_ms: float = -1.0
    """Between calls coming in, a running mean; negative: not known."""
    sent_ms: int = -1
    sent_gap_ms: float = -1.0
    live: dict[int, int] = field(default_factory=dict)
    """Shard -> until when the entry can be read."""
    lifetime: str = ""
    writing: dict[int, tuple[object, int]] = field(default_factory=dict)
    """Shard -> who writes the entry now, and how urgent it is."""
    barren_ms: int = -1
    """Until then it is not tried again: the provider was asked to write it, and did not."""
    group: Group | None = None
    """Calls that run through it have keys by it."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One call on its way through."""

    path: Path
    nodes: list[_Node]
    urgency: int
    """0 is the most urgent; nobody waits for a writer that is less urgent than itself."""
    claim: Claim
    place: Literal["waiting", "flying", "gone"] = "waiting"
    group: Group | None = None
    """Whose keys it has."""
    writes: list[tuple[int, _Node, Lifetime]] = field(default_factory=list)

    @property
    def shard(self) -> int:
        """Number of its key: each is on a machine of its own, with a cache of its own."""
        return self.claim.number or 0

    @property
    def key(self) -> str | None:
        number = self.claim.number
        return None if self.group is None or number is None else f"{self.group.name}-{number}"


@dataclass(frozen=True, slots=True)
class Held:
    """Its group's keys are full, and others can be sent meanwhile: ask again when `release` names it, or insist."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again as soon as this prefix has been written, or its writer failed."""

    node: bytes


@dataclass(frozen=True, slots=True)
class Go:
    """Nothing to wait for."""


class PrefixTree:
    """Not thread-safe; times in epoch ms are given."""

    def __init__(self, terms: Terms, *, remember: int, calls_per_s: float) -> None:
        """`remember`: shared prefixes kept while nobody waits with them. `calls_per_s`: what to expect until it is seen."""
        self._terms = terms
        self._remember = remember
        self._nodes: dict[bytes, _Node] = {}
        self._once: OrderedDict[bytes, None] = OrderedDict()
        self._shared: OrderedDict[bytes, None] = OrderedDict()
        per_key = terms.per_key_per_minute
        self._ring = None if per_key is None else KeyRing(per_key, calls_per_s=calls_per_s)

    def __len__(self) -> int:
        return len(self._nodes)

    # --- a call's way ----------------------------------------------------------------------------------------------------

    def enter(self, path: Path, now_ms: int, urgency: int = 1, share: str = "") -> Ticket:
        """`share`: whose call it is, see `Claim`."""
        nodes = []
        for block in path:
            node = self._nodes.get(block.node)
            if node is None:
                node = self._nodes[block.node] = _Node()
            if node.last_ms >= 0:
                node.gap_ms = _mean(node.gap_ms, now_ms - node.last_ms)
            node.last_ms = now_ms
            node.waiting += 1
            node.seen += 1
            self._once.pop(block.node, None)
            self._shared.pop(block.node, None)
            nodes.append(node)
        return Ticket(path, nodes, urgency, Claim(urgency, share))

    def turn(self, ticket: Ticket, now_ms: int, *, insist: bool = False) -> Held | Wait | Go:
        """Whether the call may go on to be sent. A `Go` makes it the writer of what nobody has written or is writing.

        `insist`: it is not held, and takes a new key where none has room.
        """
        worth = self._worth(ticket, now_ms)
        if not self._keyed(ticket, worth, now_ms, insist=insist):
            return Held()
        shard = ticket.shard
        live = self._deepest_live(ticket, shard, now_ms)
        for i, _ in worth:
            holder = ticket.nodes[i].writing.get(shard)
            if i > live and holder is not None and holder[0] is not ticket and holder[1] <= ticket.urgency:
                return Wait(ticket.path[i].node)
        self._reserve(ticket, [(i, lifetime) for i, lifetime in worth if i > live])
        return Go()

    def held(self, ticket: Ticket, now_ms: int) -> bool:
        """Has its group no key for it now?"""
        return not self._keyed(ticket, self._worth(ticket, now_ms), now_ms, insist=False)

    def set_share(self, share: float) -> None:
        """This worker's part of the calls that a key takes."""
        if self._ring is not None:
            self._ring.set_share(share)

    @property
    def holds(self) -> bool:
        """Is anybody held?"""
        return self._ring is not None and self._ring.holds

    def release(self, now_ms: int) -> list[Claim]:
        """The claims of tickets that were held and have a key now: they are to ask for their turn again."""
        return [] if self._ring is None else self._ring.release(now_ms)

    def board(self, ticket: Ticket, now_ms: int) -> Marks:
        """The call is sent now: its marks. One that was given up meanwhile gets none."""
        if ticket.place != "waiting":
            return Marks(self._terms.kind)
        worth = self._worth(ticket, now_ms)
        self._keyed(ticket, worth, now_ms, insist=True)
        shard = ticket.shard
        live = self._deepest_live(ticket, shard, now_ms)
        new: list[tuple[int, Lifetime]] = []
        for i, lifetime in worth:
            holder = ticket.nodes[i].writing.get(shard)
            if i > live and holder is not None and holder[0] is not ticket:
                break  # it would be written twice: this call came too early to read it
            if i > live:
                new.append((i, lifetime))
        self._release(ticket)
        chosen = self._choose(ticket.path, live, new)
        self._reserve(ticket, chosen)
        self._leave_queue(ticket)
        ticket.place = "flying"
        self._sent(ticket, now_ms)
        return Marks(self._terms.kind, tuple(self._marks(ticket, live, chosen)), ticket.key)

    def begun(self, ticket: Ticket, now_ms: int) -> list[bytes]:
        """The call's answer has begun: until `land` says otherwise, what it writes can be read. Returns the prefixes as `land` does."""
        woken: list[bytes] = []
        shard = ticket.shard
        for i, node, lifetime in ticket.writes if ticket.place == "flying" else ():
            if node.writing.get(shard, (None, 0))[0] is ticket:
                del node.writing[shard]
                node.live[shard], node.lifetime = now_ms + lifetime.seconds * 1000, lifetime.name
                woken.append(ticket.path[i].node)
        return woken

    def land(self, ticket: Ticket, now_ms: int, *, cached: int | None = None) -> list[bytes]:
        """The call is over. `cached`: tokens that it read and wrote by its usage; None: it failed, or was never sent.

        Returns the prefixes whose waiters are to ask again.
        """
        woken = [ticket.path[i].node for i, node, _ in ticket.writes if node.writing.get(ticket.shard, (None, 0))[0] is ticket]
        if ticket.place == "flying" and cached is not None:
            shard = ticket.shard
            for _, node, lifetime in ticket.writes:
                if cached > 0 or not self._terms.marks:
                    node.live[shard] = now_ms + lifetime.seconds * 1000
                    node.lifetime = lifetime.name
                else:
                    node.live.pop(shard, None)
                    node.barren_ms = now_ms + self._terms.lifetimes[-1].seconds * 1000
            if cached > 0:
                self._refresh(ticket, now_ms)
        if self._ring is not None and ticket.place != "gone":
            self._ring.over(ticket.claim, now_ms)
        self._leave_queue(ticket)
        self._release(ticket)
        ticket.place = "gone"
        self._retire(ticket, now_ms)
        return woken

    # --- what is worth a mark ----------------------------------------------------------------------------------------

    def _worth(self, ticket: Ticket, now_ms: int) -> list[tuple[int, Lifetime]]:
        """Blocks after which some expected readers part from this path, shallowest first, each with the lifetime that it needs."""
        found: list[tuple[int, Lifetime]] = []
        below = 0.0
        for i in range(len(ticket.path) - 1, -1, -1):
            block, node = ticket.path[i], ticket.nodes[i]
            if block.tokens < self._terms.min_tokens:
                break
            lifetime, readers = self._lifetime(ticket, node, now_ms)
            if lifetime is None or (self._terms.marks and block.at is None):
                continue
            if readers > below + 0.5 and node.barren_ms < now_ms:
                found.append((i, lifetime))
                below = readers
        found.reverse()
        return _outlive(found)[:_MOST_CANDIDATES]

    def _lifetime(self, ticket: Ticket, node: _Node, now_ms: int) -> tuple[Lifetime | None, float]:
        """The cheapest lifetime in which reads pay for the write, and how many reads are expected; None where none does."""
        others = node.waiting - (1 if ticket.place == "waiting" else 0)
        past = node.seen - 1 - others
        gap = node.sent_gap_ms if node.sent_gap_ms >= 0 else (0.0 if others else node.gap_ms)
        for lifetime in self._terms.lifetimes:
            if gap * _SPARE > lifetime.seconds * 1000:
                continue
            again = 0.0 if past <= 0 or node.gap_ms < 0 else min(past, lifetime.seconds * 1000 / max(node.gap_ms, 1.0))
            readers = others + again
            if readers >= 1 and (1 - self._terms.read) * readers > lifetime.write - 1:
                return lifetime, readers
        return None, 0.0

    def _deepest_live(self, ticket: Ticket, shard: int, now_ms: int) -> int:
        """Index of the deepest block that can be read by the key of this number; -1 where none can."""
        for i in range(len(ticket.nodes) - 1, -1, -1):
            if ticket.nodes[i].live.get(shard, -1) > now_ms:
                return i
        return -1

    def _choose(self, path: Path, live: int, new: list[tuple[int, Lifetime]]) -> list[tuple[int, Lifetime]]:
        """Those new marks, as many as fit, that leave the fewest tokens to be processed again by the first one that parts elsewhere."""
        room = self._terms.most_marks - (1 if live >= 0 else 0)
        if not self._terms.marks or len(new) <= room:
            return new
        depth = [path[live].tokens if live >= 0 else 0, *(path[i].tokens for i, _ in new)]
        n = len(new)
        # best[k][j]: (tokens lost among the first j, marks taken), the last one taken being j
        best: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {(0, 0): (0, ())}
        for k in range(1, room + 1):
            for j in range(k, n + 1):
                options = [
                    (lost + sum(depth[x] - depth[prev] for x in range(prev + 1, j)), (*taken, j))
                    for prev in range(j)
                    if (k - 1, prev) in best
                    for lost, taken in (best[k - 1, prev],)
                ]
                if options:
                    best[k, j] = min(options)
        full = [(j, *found) for (k, j), found in best.items() if k == room]
        _, taken = min((lost + sum(depth[x] - depth[j] for x in range(j + 1, n + 1)), taken) for j, lost, taken in full)
        return [new[j - 1] for j in taken]

    def _marks(self, ticket: Ticket, live: int, chosen: list[tuple[int, Lifetime]]) -> list[Mark]:
        if not self._terms.marks:
            return []
        found = []
        if live >= 0 and ticket.path[live].at is not None:
            found.append(_mark(ticket.path[live], ticket.nodes[live].lifetime))
        return found + [_mark(ticket.path[i], lifetime.name) for i, lifetime in chosen]

    # --- who writes ------------------------------------------------------------------------------------------------------

    def _reserve(self, ticket: Ticket, chosen: list[tuple[int, Lifetime]]) -> None:
        self._release(ticket)
        shard = ticket.shard
        for i, lifetime in chosen:
            node = ticket.nodes[i]
            if shard not in node.writing:
                node.writing[shard] = (ticket, ticket.urgency)
            ticket.writes.append((i, node, lifetime))

    def _release(self, ticket: Ticket) -> None:
        for _, node, _ in ticket.writes:
            if node.writing.get(ticket.shard, (None, 0))[0] is ticket:
                del node.writing[ticket.shard]
        ticket.writes.clear()

    def _keyed(self, ticket: Ticket, worth: list[tuple[int, Lifetime]], now_ms: int, *, insist: bool) -> bool:
        """False: it is held for want of a key. The keys are those of the shallowest prefix that is worth one."""
        if self._ring is None or ticket.claim.number is not None:
            return True
        root = next((i for i, node in enumerate(ticket.nodes) if node.group is not None), worth[0][0] if worth else None)
        if root is None:
            return True
        node = ticket.nodes[root]
        if node.group is None:
            node.group = Group(ticket.path[root].node.hex()[:24])
        ticket.group = node.group
        return self._ring.ask(ticket.claim, node.group, now_ms, insist=insist)

    def _sent(self, ticket: Ticket, now_ms: int) -> None:
        if self._ring is not None:
            self._ring.send(ticket.claim, now_ms)
        for node in ticket.nodes:
            if node.sent_ms >= 0:
                node.sent_gap_ms = _mean(node.sent_gap_ms, now_ms - node.sent_ms)
            node.sent_ms = now_ms

    def _refresh(self, ticket: Ticket, now_ms: int) -> None:
        """A read begins the lifetime anew."""
        seconds = {lifetime.name: lifetime.seconds for lifetime in self._terms.lifetimes}
        shard = ticket.shard
        live = self._deepest_live(ticket, shard, now_ms)
        if live >= 0:
            node = ticket.nodes[live]
            node.live[shard] = now_ms + seconds.get(node.lifetime, 0) * 1000

    # --- what is remembered ------------------------------------------------------------------------------------------

    def _leave_queue(self, ticket: Ticket) -> None:
        if ticket.place == "waiting":
            for node in ticket.nodes:
                node.waiting -= 1
            ticket.place = "gone"

    def _retire(self, ticket: Ticket, now_ms: int) -> None:
        for block, node in zip(ticket.path, ticket.nodes, strict=True):
            if node.waiting == 0 and not node.writing and self._nodes.get(block.node) is node:
                # What was met once is forgotten first: mostly it is the end of a prompt, which nothing else begins with.
                (self._shared if node.seen > 1 else self._once)[block.node] = None
        for kept in (self._once, self._shared):
            while len(kept) > self._remember:
                gone, _ = kept.popitem(last=False)
                self._nodes.pop(gone, None)


def marks_of_job(terms: Terms, paths: Sequence[Path], *, calls_per_s: float = 1.0) -> list[Marks]:
    """The marks of calls that are known all together, as in a provider's batch file, in the order of `paths`.

    Nobody can wait there for who writes: every member of a group carries the mark that the first one of `send_order` writes.
    """
    tree = PrefixTree(terms, remember=0, calls_per_s=calls_per_s)
    order = send_order(paths)
    tickets = {i: tree.enter(paths[i], 0) for i in order}
    found: dict[int, Marks] = {}
    for i in order:
        found[i] = tree.board(tickets[i], 0)
        tree.land(tickets[i], 0, cached=1)
    return [found[i] for i in range(len(paths))]


def _mean(old: float, new: float) -> float:
    return new if old < 0 else old + _SMOOTH * (new - old)


def _mark(block: Block, lifetime: str) -> Mark:
    assert block.at is not None
    return Mark(block.at, lifetime, block.node, block.tokens)


def _outlive(found: list[tuple[int, Lifetime]]) -> list[tuple[int, Lifetime]]:
    """Within a request no mark may be kept longer than one before it."""
    longest: Lifetime | None = None
    kept: list[tuple[int, Lifetime]] = []
    for i, lifetime in reversed(found):
        longest = lifetime if longest is None or lifetime.seconds > longest.seconds else longest
        kept.append((i, longest))
    kept.reverse()
    return kept
