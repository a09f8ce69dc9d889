"""Where calls wait for the one that writes their shared prefix to the provider's cache, and get their marks.

It changes nothing but the order in which calls are sent and what is said about their prefix: a call that waits here is not acknowledged,
holds no permit and has no intent, so a crash loses nothing. Nobody waits for a less urgent lane; express waits for nobody. For a writer
nobody waits long, and for room at a key of its group only while other calls of its tenant can be sent.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence

from ..pipeline.errors import EngineError
from ..pipeline.models import Model
from ..pipeline.prefix import Path, Terms, marked, may_be_cached, path_of, send_order
from ..pipeline.prefix_keys import Claim
from ..pipeline.prefix_tree import PrefixTree, Ticket, Wait
from ..schemas.answers import Usage
from ..schemas.record import JsonObject, Lane
from ..schemas.requests import Request
from .entrance import Entrance
from .packer import Now

MOST_WAIT_S: dict[Lane, float] = {Lane.EXPRESS: 0.0, Lane.STANDARD: 10.0, Lane.BATCH: 30.0}
"""So long a call of a lane waits for others to write what it could read."""
TICK_S = 0.05
"""So often it is looked whether calls that were held may go."""
_URGENCY = {Lane.EXPRESS: 0, Lane.STANDARD: 1, Lane.BATCH: 2}
_PATHS_KEPT = 16_384
_CALL_S = 2.0
"""How long a call takes, until it is known better: with the calls in flight it gives a first guess of how many are sent a second."""

TermsOf = Callable[[Model], Terms | None]
"""The terms of a model's cache at today's prices. Raises `Unpriced`."""


class Seat:
    """One attempt of a call on its way through the room. `leave` it in any case."""

    __slots__ = ("_entrance", "_inside", "_lane", "_room", "_ticket", "_tree")

    def __init__(
        self, room: "PrefixRoom", tree: PrefixTree | None, ticket: Ticket | None, lane: Lane, entrance: Entrance | None = None
    ) -> None:
        self._room = room
        self._tree = tree
        self._ticket = ticket
        self._lane = lane
        self._entrance = entrance
        self._inside = False

    async def ready(self, most_s: float | None = None) -> None:
        """Returns when the call may be sent: nobody is writing what it could read, or it has waited long enough."""
        if self._tree is None or self._ticket is None:
            return
        # The other members of its packet come in first: they are who it may write for.
        await asyncio.sleep(0)
        await self._in_turn(most_s)
        loop = asyncio.get_running_loop()
        until = loop.time() + min(MOST_WAIT_S[self._lane], float("inf") if most_s is None else most_s)
        while isinstance(step := self._tree.turn(self._ticket, self._room.now(), insist=True), Wait):
            left = until - loop.time()
            if left <= 0:
                return
            self._step_out()
            try:
                async with asyncio.timeout(left):
                    await self._room.written(self._tree, step.node)
                    await self._step_in(first=True)
            except TimeoutError:
                return

    async def _in_turn(self, most_s: float | None) -> None:
        """Returns when it has a key, or needs none, and can be sent soon; or half of its time is over: the other half is for the call."""
        assert self._tree is not None
        assert self._ticket is not None
        claim = self._ticket.claim
        try:
            async with asyncio.timeout(None if most_s is None else most_s / 2):
                if self._tree.held(self._ticket, self._room.now()):
                    await self._room.released(self._tree, claim)
                await self._step_in(first=claim.began_ms >= 0)
        except TimeoutError:
            return

    async def _step_in(self, *, first: bool) -> None:
        if self._entrance is not None:
            await self._entrance.enter(first=first)
            self._inside = True

    def _step_out(self, *, sent: bool = False) -> None:
        if self._entrance is not None and self._inside:
            self._inside = False
            self._entrance.leave(sent=sent)

    @property
    def writes(self) -> bool:
        """Do others wait for what it will write?"""
        return self._ticket is not None and bool(self._ticket.writes)

    def board(self, body: JsonObject) -> JsonObject:
        """The body as it is sent now, with its marks."""
        if self._tree is None or self._ticket is None:
            return body
        self._step_out(sent=True)
        return marked(body, self._tree.board(self._ticket, self._room.now()))

    def begun(self) -> None:
        """Its answer has begun to come: what it writes can be read, and who waits for that need not wait for the rest."""
        if self._tree is not None and self._ticket is not None:
            self._room.wake(self._tree, self._tree.begun(self._ticket, self._room.now()))

    def land(self, usage: Usage | None = None) -> None:
        """The call is over: `usage` is None where it failed. The first word counts."""
        if self._tree is None or self._ticket is None or self._ticket.place == "gone":
            return
        cached = None
        if usage is not None:
            writes = usage.cache_write_tokens + usage.cache_write_1h_tokens + usage.cache_write_12h_tokens
            cached = usage.cache_read_tokens + writes
        self._room.wake(self._tree, self._tree.land(self._ticket, self._room.now(), cached=cached))

    def leave(self) -> None:
        """A call that was not sent makes room for the next one; one that is under way lands by itself."""
        self._step_out()
        if self._ticket is not None and self._ticket.place == "waiting":
            self.land()


class PrefixRoom:
    """The prefix trees of one worker, by model."""

    def __init__(self, terms_of: TermsOf, *, enabled: bool, remember: int, now: Now, least_tokens: int = 0) -> None:
        """`remember`: shared prefixes kept per model while no call waits with them (CACHE_PREFIX_SIZE). `least_tokens`: what every model
        asks of a prefix; shorter prompts are not looked at."""
        self._terms_of = terms_of
        self._enabled = enabled
        self._remember = remember
        self._least_tokens = least_tokens
        self.now = now
        self._trees: dict[str, tuple[Terms, PrefixTree]] = {}
        self._paths: OrderedDict[str, Path] = OrderedDict()
        self._written: dict[tuple[int, bytes], asyncio.Event] = {}
        self._held: dict[Claim, asyncio.Event] = {}
        self._looking: set[int] = set()
        self._entrances: dict[tuple[str, str, Lane], Entrance] = {}
        self._share = 1.0

    def set_share(self, share: float) -> None:
        """This worker's part of the calls that a key takes: owned partitions over all partitions. Without any it stays as it was."""
        if share > 0:
            self._share = share
            for _, tree in self._trees.values():
                tree.set_share(share)

    def in_order(self, requests: Sequence[Request], groups: Sequence[str | None] = ()) -> list[int]:
        """Indexes of the requests: those that share a prefix side by side, and within that those of a group (see `Call.group`)."""
        if not self._enabled or len(requests) < 2:
            return list(range(len(requests)))
        paths = [self._path(request) for request in requests]
        if not any(paths) and not any(groups):
            return list(range(len(requests)))
        for request, path in zip(requests, paths, strict=True):
            self._paths[request.flight] = path
        while len(self._paths) > _PATHS_KEPT:
            self._paths.popitem(last=False)
        return send_order(paths, groups)

    def _path(self, request: Request) -> Path:
        return path_of(request.identity.tenant, request.body) if may_be_cached(request.body, self._least_tokens) else ()

    def enter(self, model: Model, request: Request, lane: Lane) -> Seat:
        tree = self._tree(model) if self._enabled else None
        if tree is None:
            return Seat(self, None, None, lane)
        terms, found = tree
        path = self._paths.pop(request.flight, None) or self._path(request)
        if not path or path[-1].tokens < terms.min_tokens:
            return Seat(self, None, None, lane)
        tenant = request.identity.tenant
        entrance = None
        if lane is not Lane.EXPRESS:
            entrance = self._entrances.setdefault((model.name, tenant, lane), Entrance(self.now))
        return Seat(self, found, found.enter(path, self.now(), _URGENCY[lane], tenant), lane, entrance)

    def outside(self, lane: Lane) -> Seat:
        """For a call that is sent another way: as a row of a batch."""
        return Seat(self, None, None, lane)

    def _tree(self, model: Model) -> tuple[Terms, PrefixTree] | None:
        try:
            terms = self._terms_of(model)
        except EngineError:
            return None  # without a price it is not called
        if terms is None:
            return None
        known = self._trees.get(model.name)
        if known is None or known[0] != terms:
            per_s = model.requests_per_minute / 60 if model.requests_per_minute else model.max_in_flight / _CALL_S
            known = self._trees[model.name] = (terms, PrefixTree(terms, remember=self._remember, calls_per_s=per_s))
            known[1].set_share(self._share)
        return known

    async def written(self, tree: PrefixTree, node: bytes) -> None:
        """Returns when a call that wrote this prefix, or was to write it, is over."""
        await self._written.setdefault((id(tree), node), asyncio.Event()).wait()

    def wake(self, tree: PrefixTree, nodes: Sequence[bytes]) -> None:
        for node in nodes:
            event = self._written.pop((id(tree), node), None)
            if event is not None:
                event.set()

    async def released(self, tree: PrefixTree, claim: Claim) -> None:
        """Returns when a call that is held has a key."""
        event = self._held[claim] = asyncio.Event()
        if id(tree) not in self._looking:
            self._looking.add(id(tree))
            self._look_soon(tree)
        try:
            await event.wait()
        finally:
            del self._held[claim]

    def _look_soon(self, tree: PrefixTree) -> None:
        asyncio.get_running_loop().call_later(TICK_S, self._look, tree)

    def _look(self, tree: PrefixTree) -> None:
        if not tree.holds:
            self._looking.discard(id(tree))
            return
        self._look_soon(tree)
        for claim in tree.release(self.now()):
            self._held[claim].set()
