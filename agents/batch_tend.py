"""Looks after one provider batch that was prepared: finds it, polls it, ends it in time, and collects its rows."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from ..connectors.crash_points import crash_at
from ..pipeline.call import purpose_of
from ..pipeline.errors import Ambiguous, EngineError, Rejected, Unavailable
from ..pipeline.flights import State
from ..pipeline.held import Batch, BatchState
from ..pipeline.models import Model
from ..pipeline.ports import BatchProvider, BatchStatus, ProviderReply
from ..pipeline.provider_batch import give_up_ms, next_poll_s
from ..schemas.answers import ErrorInfo
from ..schemas.ledger import BatchClosed, BatchSubmitted, BatchVoid, Intent
from ..schemas.requests import Call
from .attempt import Attempt, IsCurrent
from .batch_parts import AGAIN_S, AT_ONCE, Keeping
from .choice import Choice
from .discards import Discards
from .limits import Permit
from .packer import WAIT_S

if TYPE_CHECKING:
    from .provider_batch import BatchStage

log = structlog.get_logger(__name__)

Result = ProviderReply | EngineError


@dataclass(frozen=True, slots=True)
class _Row:
    """A member whose outcome is not written yet."""

    attempt: str
    flight: str
    number: int
    cap_pico: int


class Tend:
    """Made for one batch; `run` returns when it is closed or void. Raises `Stale`, `Unavailable`: it is taken up again."""

    def __init__(self, stage: "BatchStage", keeping: Keeping, key: str) -> None:
        self._s, self._p = stage, stage.parts.calls
        self._keeping, self._owned = keeping, keeping.owned
        self._key = key

    @property
    def _batch(self) -> Batch:
        return self._owned.ledger.holdings.batches[self._key]

    async def run(self) -> None:
        batch = self._batch
        model, provider = self._s.can(batch.model)
        if model is None or provider is None:
            raise Unavailable(f"batch {self._key} is of {batch.model!r} at {batch.provider}, which is not set up: it can't be collected")
        try:
            self._show(batch, BatchStatus("working"))
            if batch.state is BatchState.PREPARED and not await self._found(provider):
                return
            # What another owner wrote of it may not have reached us.
            await self._p.ledger.catch_up(self._owned, min(self._p.now(), max(self._owned.owner.since_ms, batch.at_ms)))
            if self._open():
                if not await self._ended(provider):
                    return
                await self._read(model, provider)
            await self._close(provider)
        finally:
            self._keeping.shown.pop(self._key, None)

    def _show(self, batch: Batch, status: BatchStatus) -> None:
        self._keeping.shown[self._key] = {
            "batch": self._key, "provider": batch.provider, "model": batch.model, "id": batch.provider_id, "rows": len(batch.members),
            "done": status.done + status.failed, "state": batch.state.name.lower() if status.state == "working" else status.state,
            "since_ms": batch.at_ms,
        }  # fmt: skip

    async def _book(self, record: BatchSubmitted | BatchVoid | BatchClosed) -> None:
        await self._p.ledger.book(self._owned.partition, record, wait_s=0)

    # --- a submission that nobody heard of ---------------------------------------------------------------------------

    async def _found(self, provider: BatchProvider) -> bool:
        """False: it certainly was not submitted, and is void now."""
        batch = self._batch
        # Before this a submission of it may still be under way, in a process that nobody hears of.
        since = batch.at_ms if batch.epoch == self._owned.owner.epoch else min(batch.at_ms, self._owned.owner.since_ms)
        until = since + batch.submit_ms
        polls = 0
        while True:
            self._owned.check()
            asked_ms = self._p.now()
            try:
                found = await provider.find(self._key, batch.file_id, batch.at_ms, len(batch.members))
            except (Unavailable, Rejected) as error:
                log.warning("a batch can't be looked for yet", batch=self._key, reason=str(error))
            else:
                if found is not None:
                    await self._book(BatchSubmitted(batch=self._key, provider_id=found, at_ms=self._p.now()))
                    return True
                if asked_ms >= until:
                    return await self._not_there(provider, until)
            if self._batch.state is BatchState.SUBMITTED:
                return True
            await self._overdue()
            wait_s = next_poll_s(polls, provider.traits)
            polls += 1
            await self._p.sleep(min(wait_s, max(0.1, (until - self._p.now()) / 1000)) if self._p.now() < until else wait_s)

    async def _not_there(self, provider: BatchProvider, until: int) -> bool:
        # The previous owner may have written down that it was submitted, and that may not have reached us.
        await self._p.ledger.catch_up(self._owned, until)
        if self._batch.state is BatchState.SUBMITTED:
            return True
        await self._book(BatchVoid(batch=self._key, reason="the provider has no such batch: it was not submitted", at_ms=self._p.now()))
        await self._forget(provider)
        return False

    # --- until it ends -----------------------------------------------------------------------------------------------

    async def _ended(self, provider: BatchProvider) -> bool:
        """False: the provider refused it as a whole, and it is void now."""
        batch, polls, canceled = self._batch, 0, False
        while True:
            self._owned.check()
            try:
                status = await provider.status(batch.provider_id)
            except (Unavailable, Rejected) as error:
                log.warning("a batch can't be asked for yet", batch=self._key, reason=str(error))
            else:
                self._show(batch, status)
                if status.state == "ended":
                    state = self._s.state(batch.provider)
                    state.ended()
                    if not canceled:
                        state.took((self._p.now() - batch.at_ms) / 1000)
                    return True
                if status.state == "failed":
                    await self._failed(provider, status)
                    return False
            end = self._give_up_ms(provider)
            if end is not None and self._p.now() >= end and not canceled:
                canceled = await self._cancel(provider)
                polls = 0
            await self._overdue()
            wait_s = next_poll_s(polls, provider.traits)
            polls += 1
            if end is not None and not canceled:
                wait_s = min(wait_s, max(0.1, (end - self._p.now()) / 1000))
            await self._p.sleep(wait_s)

    def _give_up_ms(self, provider: BatchProvider) -> int | None:
        held = self._owned.ledger.holdings.held
        return give_up_ms((held[flight].deadline_ms for flight, _, _ in self._batch.members if flight in held), provider.traits)

    async def _cancel(self, provider: BatchProvider) -> bool:
        log.info("a batch is ended before its time: its rows are asked one by one for their deadline", batch=self._key)
        try:
            await provider.cancel(self._batch.provider_id)
        except (Unavailable, Rejected) as error:
            log.warning("a batch can't be ended yet", batch=self._key, reason=str(error))
            return False
        return True

    async def _failed(self, provider: BatchProvider, status: BatchStatus) -> None:
        state = self._s.state(self._batch.provider)
        if status.full:
            log.info("the provider's queue of batches is full: smaller ones follow, one at a time", batch=self._key, reason=status.message)
            state.crowded(len(self._batch.members), self._p.now())
        else:
            log.warning("the provider refused a batch as a whole; its calls are made one by one", batch=self._key, reason=status.message)
            state.refused_until_ms = self._p.now() + int(AGAIN_S * 1000)
        await self._forget(provider)
        await self._book(BatchVoid(batch=self._key, reason=status.message, at_ms=self._p.now()))

    async def _overdue(self) -> None:
        """No row can be answered any more: each is booked at its cap."""
        batch = self._batch
        if self._p.now() < batch.at_ms + batch.timeout_ms:
            return
        await self._p.ledger.catch_up(self._owned, batch.at_ms + batch.timeout_ms)
        model = self._p.catalogue.get(batch.model)
        why = Ambiguous("nobody knows what became of the batch, and its time is over")
        await self._settle(model, [(row, why) for row in self._open()])
        await self._book(BatchClosed(batch=self._key, at_ms=self._p.now()))
        raise Unavailable(f"batch {self._key} was never heard of again: its rows are booked at their caps")

    # --- its rows ----------------------------------------------------------------------------------------------------

    def _open(self) -> list[_Row]:
        state = self._owned.ledger.state
        return [_Row(attempt, *member) for attempt, member in self._batch.attempts() if state(member[0], attempt) is State.OPEN]

    async def _close(self, provider: BatchProvider) -> None:
        crash_at("after_collection")
        await self._forget(provider)
        crash_at("after_forget")
        await self._book(BatchClosed(batch=self._key, at_ms=self._p.now()))

    async def _read(self, model: Model, provider: BatchProvider) -> None:
        await self._p.ledger.catch_up(self._owned, min(self._p.now(), max(self._owned.owner.since_ms, self._batch.at_ms)))
        rows = {row.attempt: row for row in self._open()}
        chunk: list[tuple[_Row, Result]] = []
        worked_on = 0
        async for found in provider.results(model, self._batch.provider_id):
            worked_on += not (isinstance(found.result, Unavailable) and found.result.code.startswith("batch_"))
            row = rows.pop(found.custom_id, None)
            if row is not None:
                chunk.append((row, found.result))
            if len(chunk) >= AT_ONCE:
                await self._settle(model, chunk)
                chunk = []
        await self._settle(model, chunk)
        if rows:
            status = await provider.status(self._batch.provider_id)
            await self._settle(model, [(row, _missing(worked_on, status)) for row in rows.values()])

    async def _settle(self, model: Model, rows: list[tuple[_Row, Result]]) -> None:
        """Writes down what became of these rows."""
        calls = await self._calls([row for row, _ in rows])
        await asyncio.gather(*(self._one(model, row, calls[row.flight], result) for row, result in rows))

    async def _calls(self, rows: list[_Row]) -> dict[str, Call]:
        found: dict[str, Call] = {}
        places = {row.flight: parked.offset for row in rows if (parked := self._owned.ledger.parked(row.flight)) is not None}
        for offset in sorted(set(places.values())):
            packet = await self._p.ledger.parked(self._owned, offset)
            found |= {flight: packet[flight] for flight, at in places.items() if at == offset}
        return found

    async def _one(self, model: Model, row: _Row, call: Call, result: Result) -> None:
        batch, request = self._batch, call.request
        intent = Intent(flight=row.flight, attempt=row.attempt, number=row.number, model=batch.model, cap_pico=row.cap_pico,
                        purpose=purpose_of(call, model.name),
                        epoch=batch.epoch, at_ms=batch.at_ms, timeout_ms=batch.timeout_ms)  # fmt: skip
        permit, seat = Permit(0, lambda _: None), self._p.prefixes.outside(request.lane)
        discards = Discards(self._p, self._owned, call, Choice(self._p, call, request.lane))
        # Where an answer is held back the call waits again, and who makes it finds the answer in the ledger: as long as that owns the call.
        waits: IsCurrent = lambda: row.flight in self._owned.ledger.holdings.held  # noqa: E731
        attempt = Attempt(self._p, self._owned, call, request.lane, waits, model, intent, permit, seat, discards, tier="batch")
        tried = await attempt.settle(result)
        crash_at("in_collection")
        if tried.next == "give_up" and tried.error is not None:
            info = ErrorInfo(code=tried.error.code, message=str(tried.error))
            failure = self._owned.ledger.failure(row.flight, request, info, self._p.now())
            await self._p.ledger.book(self._owned.partition, failure, WAIT_S[request.lane])

    async def _forget(self, provider: BatchProvider) -> None:
        """Until it is done: a file that stays holds other people's words."""
        polls = 0
        while True:
            try:
                await provider.forget(self._batch.provider_id, self._batch.file_id)
                return
            except Rejected as error:
                log.error("the provider does not delete the files of a batch; delete them by hand", batch=self._key, reason=str(error))
                return
            except Unavailable as error:
                log.warning("the files of a batch can't be deleted yet", batch=self._key, reason=str(error))
            self._owned.check()
            await self._p.sleep(next_poll_s(polls, provider.traits))
            polls += 1


def _missing(worked_on: int, status: BatchStatus) -> EngineError:
    """Of a row without a result. Where the provider's own count agrees with what came, it was not worked on."""
    if worked_on == status.done + status.failed:
        return Unavailable("the batch ended before the row was worked on; nothing was billed", code="batch_ended")
    return Ambiguous("the batch ended and has no result for the row; it may have been billed")
