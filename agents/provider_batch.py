"""Runs the provider batches: calls that have time wait here for half the price.

    call -> PARKED (durable) -> acknowledged; from here on the ledger owns it
    file -> PREPARED (fenced) -> create -> SUBMITTED -> polled -> one outcome per row -> files deleted -> CLOSED

No Kafka offset is held for any of it. What is open is in the ledger's holdings; whoever takes a partition over goes on with
them. A batch of whose submission nobody heard is looked for at the provider, and is given up only where it certainly is not there.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any

import orjson
import structlog

from ..connectors.crash_points import crash_at
from ..pipeline.errors import EngineError, Rejected, Stale, Unpriced
from ..pipeline.flights import Held
from ..pipeline.ledger import Pay, Policy
from ..pipeline.models import Model
from ..pipeline.ports import BatchProvider
from ..pipeline.provider_batch import Way, choose, closes, grouped, has_time, late
from ..schemas.ledger import Parked
from ..schemas.requests import Call
from .batch_file import BatchFile
from .batch_parts import BatchParts, Keeping, Provided
from .batch_tend import Tend
from .ledger import UNKNOWN, OwnedLedger
from .packer import WAIT_S

log = structlog.get_logger(__name__)

REST_S = 5.0
"""After something went wrong."""


class BatchStage:
    """The batches of the ledger partitions that this worker owns."""

    def __init__(self, parts: BatchParts) -> None:
        self.parts = parts
        self._state: defaultdict[str, Provided] = defaultdict(Provided)
        self._keepers: dict[int, asyncio.Task[None]] = {}
        self._keepings: dict[int, Keeping] = {}
        self._detached: set[asyncio.Task[None]] = set()

    # --- calls come in -----------------------------------------------------------------------------------------------

    async def take(self, owned: OwnedLedger, call: Call) -> bool:
        """True: the ledger owns the call, and its packet may be acknowledged. False: it is to be made now, or has ended."""
        p, request = self.parts.calls, call.request
        flight, held = request.flight, owned.ledger.holdings.held
        if flight not in held and (not has_time(request.lane, request.deadline_ms) or call.route.cascade != "off"):
            return False  # the answers of a cascade are checked one after the other
        decision = owned.ledger.decide(
            flight, now_ms=p.now(), owner=owned.owner, policy=self.policy(call), cap_pico=0, asked_ms=request.accepted_ms
        )
        if not isinstance(decision, Pay) or flight in held:
            # One that the ledger owns is on its way already; one that has ended is answered again.
            return flight in held
        model = self._model(call)
        if model is None or p.cancelled(request) or self.way(owned, call, model) != "batch":
            return False
        record = Parked(flight=flight, call=call, model=model.name, size=len(orjson.dumps(request.body)), at_ms=p.now())
        await p.ledger.book(owned.partition, record, WAIT_S[request.lane])
        crash_at("after_parked")
        return True

    def policy(self, call: Call, *, capped: bool = False) -> Policy:
        """`capped`: the request's own limit counts too."""
        p, request = self.parts.calls, call.request
        most = request.max_cost_pico if capped else None
        return Policy(p.settings.max_attempts, p.on_ambiguous(request.identity.tenant), most)

    def _model(self, call: Call) -> Model | None:
        """The first choice of its route, where that can be asked in a batch."""
        model, provider = self.can(call.route.models[0]) if call.route.models else (None, None)
        return model if provider is not None else None

    def can(self, name: str) -> tuple[Model | None, BatchProvider | None]:
        """The model and its provider's batches; None where it is not, or no longer, set up."""
        try:
            model = self.parts.calls.catalogue.get(name)
        except Rejected:
            return None, None
        return model, self.parts.providers.get(model.provider)

    def way(self, owned: OwnedLedger, call: Call, model: Model, *, parked: bool = False) -> Way:
        """How the call is made, as things stand now."""
        request, now = call.request, self.parts.calls.now()
        state = self.state(model.provider)
        try:
            prices = self.parts.prices(model, request.body)
        except Unpriced:
            return "sync"
        left_s = None if request.deadline_ms is None else (request.deadline_ms - now) / 1000
        traits = None if now < state.refused_until_ms else self.parts.providers[model.provider].traits
        tries = owned.ledger.unpaid(request.flight)
        if state.most_rows is not None and tries is not None:
            tries = 0  # that there was no room says nothing about the request
        return choose(
            left_s=left_s, lane=request.lane, prices=prices, traits=traits, took_s=state.took_s, tries=tries, parked=parked
        )  # fmt: skip

    def state(self, provider: str) -> Provided:
        return self._state[provider]

    # --- ownership ---------------------------------------------------------------------------------------------------

    async def assigned(self, partitions: Iterable[int]) -> None:
        """Takes up what is open in these partitions, as soon as their ledger is replayed."""
        for partition in set(partitions) - self._keepers.keys():
            self._keepers[partition] = asyncio.create_task(self._keep(partition), name=f"batches {partition}")

    async def revoked(self, partitions: Iterable[int]) -> None:
        """Leaves everything as it is for the next owner."""
        gone = [task for p in set(partitions) if (task := self._keepers.pop(p, None)) is not None]
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)

    async def drain(self, grace_s: float) -> int:
        """Begins nothing more, and waits for submissions under way: so the producer must still run.

        Returns how many were cut short; the next owner looks for them at the provider.
        """
        await self.revoked(list(self._keepers))
        if not self._detached:
            return 0
        _, cut = await asyncio.wait(self._detached, timeout=grace_s)
        for task in cut:
            task.cancel()
        await asyncio.gather(*cut, return_exceptions=True)
        return len(cut)

    async def close(self) -> None:
        await self.drain(0)
        for provider in {id(b): b for b in self.parts.providers.values()}.values():
            await provider.close()

    async def detached(self, work: Awaitable[None]) -> None:
        """A submission is money: losing the partition must not cut it off."""
        task = asyncio.ensure_future(work)
        self._detached.add(task)
        task.add_done_callback(self._detached.discard)
        await asyncio.shield(task)

    def shown(self) -> list[dict[str, Any]]:
        """The open batches, for people."""
        return [dict(batch) for keeping in self._keepings.values() for batch in keeping.shown.values()]

    def waiting(self) -> int:
        """Calls that wait for their batch to be closed."""
        return sum(len(k.owned.ledger.holdings.waiting) for k in self._keepings.values())

    async def _keep(self, partition: int) -> None:
        sleep = self.parts.calls.sleep
        while True:
            keeping: Keeping | None = None
            try:
                owned = await self.parts.calls.ledger.owned(partition)
                keeping = self._keepings[partition] = Keeping(owned)
                keeping.left = _called_alone(owned)
                while True:
                    owned.check()
                    self._look(keeping)
                    await sleep(self.parts.tick_s)
            except Stale:
                await sleep(1.0)
            except Exception:
                log.exception("the batches of a partition could not be looked after; they are taken up again", partition=partition)
                await sleep(REST_S)
            finally:
                self._keepings.pop(partition, None)
                if keeping is not None:
                    await keeping.end()

    # --- what there is to do -----------------------------------------------------------------------------------------

    def _look(self, keeping: Keeping) -> None:
        holdings = keeping.owned.ledger.holdings
        for batch in holdings.open_batches():
            if batch.key not in keeping.tended:
                keeping.tended.add(batch.key)
                self._begin(keeping, Tend(self, keeping, batch.key).run(), f"batch {batch.key}", keeping.tended, {batch.key})
        waiting = {flight: held for flight, held in holdings.waiting.items() if flight not in keeping.busy}
        # An attempt of theirs is open, so they don't wait for a batch: the call stage settles it, and goes on with the call.
        keeping.left = {flight for flight in keeping.left if flight in holdings.held and flight not in holdings.waiting}
        if left := {flight: holdings.held[flight] for flight in keeping.left - keeping.busy}:
            self._one_by_one(keeping, left)
        now = self.parts.calls.now()
        for (name, _), group in grouped(waiting, now).items():
            self._look_at(keeping, name, group, now)

    def _look_at(self, keeping: Keeping, name: str, group: Mapping[str, Held], now: int) -> None:
        model, provider = self.can(name)
        if model is None or provider is None:
            self._one_by_one(keeping, group)
            return
        state = self.state(model.provider)
        hurried = {flight: held for flight, held in group.items() if late(held, now, provider.traits, state.took_s)}
        if hurried:
            self._one_by_one(keeping, hurried)
        rest = {flight: held for flight, held in group.items() if flight not in hurried}
        one_at_a_time = state.most_rows is not None and any(b["provider"] == model.provider for b in self.shown())
        if now >= state.closed_until_ms and not one_at_a_time and closes(rest.values(), now, provider.traits):
            mine = set(rest)
            keeping.busy |= mine
            work = BatchFile(self, keeping, model, provider, mine).run(rest)
            self._begin(keeping, work, f"batch of {name}", keeping.busy, mine)

    def _begin(self, keeping: Keeping, work: Any, name: str, taken: set[str], mine: set[str]) -> None:
        """Runs it; then `mine` are free again."""

        async def watched() -> None:
            try:
                await work
            except Stale:
                pass  # the keeper finds out by itself
            except EngineError as error:
                log.warning("a batch has to wait", task=name, reason=str(error))
                await self.parts.calls.sleep(REST_S)
            except Exception:
                log.exception("a batch could not be worked on; it is tried again, nothing of it is lost", task=name)
                await self.parts.calls.sleep(REST_S)
            finally:
                taken.difference_update(mine)

        keeping.begin(watched(), name)

    # --- one by one --------------------------------------------------------------------------------------------------

    def _one_by_one(self, keeping: Keeping, group: Mapping[str, Held]) -> None:
        mine = set(group)
        keeping.busy |= mine

        async def each() -> None:
            async for call in self.calls_of(keeping.owned, group):
                mine.discard(call.request.flight)
                self.alone(keeping, call)

        self._begin(keeping, each(), "calls for which a batch takes too long", keeping.busy, mine)

    def alone(self, keeping: Keeping, call: Call) -> None:
        """Begins a call that the ledger owns; its flight must be busy."""
        flight, owned = call.request.flight, keeping.owned

        async def run() -> None:
            async with keeping.turns:
                if flight in owned.ledger.holdings.held:
                    current: Callable[[], bool] = lambda: owned.lost is None  # noqa: E731
                    await self.parts.stage.run(owned.partition, call, call.request.lane, current, held=True)

        self._begin(keeping, run(), f"call of {flight[:12]}", keeping.busy, {flight})

    async def calls_of(self, owned: OwnedLedger, group: Mapping[str, Held]) -> AsyncIterator[Call]:
        """In the order in which they were parked, packet by packet. Raises `Rejected`, `Unavailable`."""
        offset, found = -1, dict[str, Call]()
        for flight, held in sorted(group.items(), key=lambda item: item[1].offset):
            if held.offset == UNKNOWN:
                continue  # durable, and where is not known until it is read back
            if held.offset != offset:
                offset, found = held.offset, await self.parts.calls.ledger.parked(owned, held.offset)
            yield found[flight]


def _called_alone(owned: OwnedLedger) -> set[str]:
    """Flights that the ledger owns, that have an open attempt, and that no open batch answers for."""
    holdings = owned.ledger.holdings
    in_batches = {flight for batch in holdings.open_batches() for flight, _, _ in batch.members}
    return holdings.held.keys() - holdings.waiting.keys() - in_batches
