"""One file of a provider batch: from calls that wait to the provider's id."""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import orjson
import structlog

from ..connectors.crash_points import crash_at
from ..pipeline.errors import Ambiguous, Rejected, Stale, Unavailable, Unpriced
from ..pipeline.flights import Held
from ..pipeline.held import Member, attempt_of
from ..pipeline.ledger import Pay
from ..pipeline.models import Model
from ..pipeline.ports import BatchProvider
from ..pipeline.prefix import Marks, Path, marked, may_be_cached, path_of, send_order
from ..pipeline.provider_batch import fits, prefix_plan
from ..schemas.ledger import BatchPrepared, BatchSubmitted, BatchVoid
from ..schemas.requests import Call
from .batch_parts import AGAIN_S, Keeping

if TYPE_CHECKING:
    from io import BufferedRandom

    from .provider_batch import BatchStage

log = structlog.get_logger(__name__)

PAUSE_S = 60.0
"""After a provider turned a batch away without a time,"""
LONGEST_PAUSE_S = 600.0
"""and at most."""
MARKS_BYTES = 1024
"""The most that marks, and a longer custom_id, add to a line."""
_PAUSE_ROWS = 64
"""Between two turns of the event loop."""
_FEW_ROWS = 500
"""Are planned at once; more of them in a thread, for they would hold up the event loop."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A call that goes into the file."""

    member: Member
    path: Path
    group: str | None
    start: int
    """Where its body stands among those that are set aside."""
    size: int


class BatchFile:
    """Made for one file; `run` returns when its submission is over, one way or the other."""

    def __init__(self, stage: "BatchStage", keeping: Keeping, model: Model, provider: BatchProvider, mine: set[str]) -> None:
        """`mine`: flights that are busy with this; those that are called for by themselves leave it."""
        self._mine = mine
        self._s, self._p = stage, stage.parts.calls
        self._keeping, self._owned = keeping, keeping.owned
        self._model, self._provider = model, provider
        self._traits = provider.traits.adjusted(rows=stage.state(model.provider).most_rows)
        self._key = stage.parts.new_key()
        self._path = stage.parts.folder / f"{self._key}.jsonl"
        try:
            self._terms = stage.parts.terms(model)
        except Unpriced:
            self._terms = None  # its calls find out for themselves
        self._rows: list[_Row] = []
        self._members: list[Member] = []
        self._most_bytes = self._bytes = 0
        self._hash = hashlib.sha256()

    async def run(self, group: Mapping[str, Held]) -> None:
        """Takes as many of these calls as fit; the others go on waiting. Raises `Stale`, `Unavailable`."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with TemporaryFile(dir=self._path.parent) as bodies:
                async for call in self._s.calls_of(self._owned, group):
                    if not self._add(call, bodies):
                        break
                await self._write(bodies)
        except BaseException:
            self._path.unlink(missing_ok=True)
            raise
        await self._s.detached(self._submit())

    def _add(self, call: Call, bodies: "BufferedRandom") -> bool:
        """False: the file is full."""
        flight = call.request.flight
        try:
            cap = self._s.parts.cap(self._model, call.request.body)
            line = self._provider.line(self._model, attempt_of(self._key, len(self._rows)), call.request.body) + b"\n"
        except (Rejected, Unpriced):
            self._alone(call)
            return True
        decision = self._owned.ledger.decide(
            flight, now_ms=self._p.now(), owner=self._owned.owner, policy=self._s.policy(call, capped=True), cap_pico=cap,
            asked_ms=call.request.accepted_ms,
        )  # fmt: skip
        batched = self._s.way(self._owned, call, self._model, parked=True) == "batch"
        if not isinstance(decision, Pay) or not batched or self._p.cancelled(call.request):
            self._alone(call)
            return True
        size = len(line) + (MARKS_BYTES if self._terms is not None else 0)
        if not fits(len(self._rows), self._most_bytes, size, self._traits):
            return False
        self._most_bytes += size
        body = orjson.dumps(call.request.body)
        self._rows.append(_Row((flight, decision.number, cap), self._prefixes(call), call.group, bodies.tell(), len(body)))
        bodies.write(body)
        return True

    def _prefixes(self, call: Call) -> Path:
        """Empty where nothing can be cached, or its author marks it himself: then it is sent as it is."""
        terms, body = self._terms, call.request.body
        if terms is None or not may_be_cached(body, terms.min_tokens):
            return ()
        path = path_of(call.request.identity.tenant, body)
        return path if path and path[-1].tokens >= terms.min_tokens else ()

    async def _write(self, bodies: "BufferedRandom") -> None:
        """The lines, in the order and with the marks by which the provider's prompt cache is used best."""
        many = len(self._rows) > _FEW_ROWS
        order, marks = await asyncio.to_thread(self._planned) if many else self._planned()
        with self._path.open("wb") as file:
            for place, i in enumerate(order):
                row = self._rows[i]
                bodies.seek(row.start)
                body = orjson.loads(bodies.read(row.size))
                sent = marked(body, marks[i]) if marks and row.path else body
                line = self._provider.line(self._model, attempt_of(self._key, place), sent) + b"\n"
                file.write(line)
                self._hash.update(line)
                self._bytes += len(line)
                self._members.append(row.member)
                if place % _PAUSE_ROWS == _PAUSE_ROWS - 1:
                    await asyncio.sleep(0)
        self._rows.clear()

    def _planned(self) -> tuple[list[int], list[Marks] | None]:
        """Indexes of the rows as they are sent, and the marks of each row; None where there are none to set."""
        paths, groups = [row.path for row in self._rows], [row.group for row in self._rows]
        if self._terms is None:
            return send_order(paths, groups), None
        return prefix_plan(self._terms, paths, self._provider.traits.turnaround_s, groups)

    def _alone(self, call: Call) -> None:
        """It is late, over its budget, cancelled, or nothing for a batch: the call stage knows what to do with it."""
        self._mine.discard(call.request.flight)
        self._s.alone(self._keeping, call)

    # --- submission --------------------------------------------------------------------------------------------------

    async def _submit(self) -> None:
        try:
            if self._members:
                await self._hand_over()
        finally:
            self._path.unlink(missing_ok=True)

    async def _hand_over(self) -> None:
        try:
            file_id = await self._provider.upload(self._key, self._path)
        except (Rejected, Unavailable) as error:
            self._turned_away(error)
            return
        crash_at("before_prepared")
        prepared = self._prepared(file_id)
        # Nobody else looks after it while it is submitted here.
        self._keeping.tended.add(self._key)
        try:
            await self._p.ledger.intend(self._owned, prepared, urgent=True)
        except Stale:
            await self._delete(file_id)
            raise
        except Unavailable as error:
            # Rolled back, but who reads the log uncommitted sees it: without this the batch would be looked for at the provider.
            await self._void(prepared, str(error))
            raise
        else:
            crash_at("after_prepared")
            await self._create(prepared)
        finally:
            self._keeping.tended.discard(self._key)

    def _prepared(self, file_id: str) -> BatchPrepared:
        parts, traits = self._s.parts, self._provider.traits
        return BatchPrepared(
            batch=self._key,
            provider=self._model.provider,
            model=self._model.name,
            members=tuple(self._members),
            file_sha256=self._hash.hexdigest(),
            file_bytes=self._bytes,
            file_id=file_id,
            reserved_pico=sum(cap for _, _, cap in self._members),
            epoch=self._owned.owner.epoch,
            at_ms=self._p.now(),
            submit_ms=int((parts.create_timeout_s + parts.slack_s + traits.settle_s) * 1000),
            timeout_ms=int((traits.window_s + traits.cancel_s + 3600) * 1000),
        )

    async def _create(self, prepared: BatchPrepared) -> None:
        late_ms = self._p.now() - prepared.at_ms
        # No await between this check and the submission: a worker that stood still finds out here that its time is over.
        if self._owned.lost is not None or not 0 <= late_ms <= self._s.parts.slack_s * 1000:
            await self._void(prepared, "it was not submitted: its intents were committed too late, or the partition was lost")
            return
        timeout = self._s.parts.create_timeout_s
        try:
            async with asyncio.timeout(timeout + 1):
                provider_id = await self._provider.create(self._key, prepared.file_id, self._path, timeout=timeout)
        except (Rejected, Unavailable) as error:
            await self._void(prepared, str(error))
            self._turned_away(error)
            return
        except (Ambiguous, TimeoutError) as error:
            log.warning("nobody knows whether a batch was submitted; it is looked for", batch=self._key, reason=str(error))
            return
        crash_at("after_submit")
        await self._p.ledger.book(
            self._owned.partition, BatchSubmitted(batch=self._key, provider_id=provider_id, at_ms=self._p.now()), wait_s=0
        )
        crash_at("after_submitted")
        log.info("a batch was submitted", batch=self._key, provider=self._model.provider, id=provider_id, rows=len(self._members))

    async def _void(self, prepared: BatchPrepared, reason: str) -> None:
        await self._p.ledger.book(self._owned.partition, BatchVoid(batch=self._key, reason=reason, at_ms=self._p.now()), wait_s=0)
        await self._delete(prepared.file_id)

    async def _delete(self, file_id: str) -> None:
        try:
            await self._provider.forget("", file_id)
        except (Rejected, Unavailable) as error:
            log.warning("the file of a batch that was not submitted stays at the provider", file=file_id, reason=str(error))

    def _turned_away(self, error: Rejected | Unavailable) -> None:
        state, now = self._s.state(self._model.provider), self._p.now()
        if isinstance(error, Unavailable):
            state.closed_until_ms = now + int(1000 * min(LONGEST_PAUSE_S, PAUSE_S if error.retry_after is None else error.retry_after))
            return
        log.warning("the provider refuses batches; its calls are made one by one", provider=self._model.provider, reason=str(error))
        state.refused_until_ms = now + int(AGAIN_S * 1000)
