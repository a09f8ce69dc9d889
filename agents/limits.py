"""How many calls may be under way, and how fast they may begin.

    per lane    so many calls in flight: a full batch lane never takes an express permit
    per model   so many in flight, requests per minute, tokens per minute; a pause when the provider says so

Waiting calls of one model begin in the order express, standard, batch, and within a lane tenant by tenant, so that a
flood of one tenant does not starve another. Rates are paced (a generic cell rate algorithm, ITU-T I.371, one for requests
and one for tokens), not counted by the minute: a provider that counts over a sliding window sees no burst.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from ..pipeline.models import Model
from ..schemas.record import Lane

_ORDER = (Lane.EXPRESS, Lane.STANDARD, Lane.BATCH)


class Pace:
    """Spaces out amounts so that their rate stays below a limit. Times in seconds of one monotonic clock."""

    def __init__(self, per_minute: int, *, share: float = 1.0, use: float = 0.98, burst_s: float = 0.5) -> None:
        """`share`: our part of the limit. `use`: what we dare to use of it, since clocks and counting differ. `burst_s`:
        how much unused time may be caught up, so that a busy event loop costs no throughput."""
        self._per_minute, self._use, self._burst = per_minute, use, burst_s
        self._free_at = float("-inf")
        self.set_share(share)

    def set_share(self, share: float) -> None:
        self._per_second = max(self._per_minute * self._use * share / 60, 1e-9)

    def ready_at(self) -> float:
        return self._free_at

    def take(self, amount: float, now: float) -> None:
        self._free_at = max(self._free_at, now - self._burst) + amount / self._per_second

    def give_back(self, amount: float) -> None:
        """What was taken and not used; negative where more was used."""
        self._free_at -= amount / self._per_second


class _Queue:
    """Waiting calls of one model: lanes by rank, tenants of a lane in turns."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, OrderedDict[str, deque[_Waiter]]] = {lane: OrderedDict() for lane in _ORDER}

    def put(self, waiter: "_Waiter") -> None:
        self._lanes[waiter.lane].setdefault(waiter.tenant, deque()).append(waiter)

    def pop(self, open_lanes: Callable[[Lane], bool]) -> "_Waiter | None":
        """The next waiter whose lane has a permit left."""
        for lane in _ORDER:
            tenants = self._lanes[lane]
            while tenants and open_lanes(lane):
                tenant, waiting = tenants.popitem(last=False)
                waiter = waiting.popleft()
                if waiting:
                    tenants[tenant] = waiting  # at the end: the others come first
                if not waiter.granted.done():
                    return waiter
        return None

    def waits(self, open_lanes: Callable[[Lane], bool]) -> bool:
        return any(tenants and open_lanes(lane) for lane, tenants in self._lanes.items())


@dataclass(slots=True)
class _Waiter:
    lane: Lane
    tenant: str
    tokens: float
    granted: "asyncio.Future[None]"


@dataclass(slots=True)
class _Gate:
    """The limits of one model."""

    model: Model
    requests: Pace | None
    tokens: Pace | None
    queue: _Queue = field(default_factory=_Queue)
    in_flight: int = 0
    usual: float = 1.0
    """Tokens used per token estimated, a running mean: what is reserved for a call that has not ended."""
    paused_until: float = float("-inf")
    alarm: "asyncio.Task[None] | None" = None

    def ready_at(self) -> float:
        return max(self.paused_until, *(pace.ready_at() for pace in (self.requests, self.tokens) if pace is not None), float("-inf"))


class Permit:
    """The right to make one call; `release` it once the call is over."""

    def __init__(self, tokens: int, give_up: Callable[["Permit"], None]) -> None:
        self.tokens = tokens
        self.used_tokens: int | None = None
        """Set it when the usage is known: the difference to the estimate is given back."""
        self._give_up: Callable[[Permit], None] | None = give_up

    def release(self) -> None:
        if self._give_up is not None:
            give_up, self._give_up = self._give_up, None
            give_up(self)


class Limits:
    """All limits of one worker."""

    def __init__(
        self,
        permits: Mapping[Lane, int],
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        use: float = 0.98,
    ) -> None:
        """`permits`: calls in flight by lane. `clock`: monotonic seconds. `use`: see `Pace`."""
        self._permits = dict(permits)
        self._clock, self._sleep, self._use = clock, sleep, use
        self._in_flight = dict.fromkeys(Lane, 0)
        self._gates: dict[str, _Gate] = {}
        self._share = 1.0

    @property
    def in_flight(self) -> dict[Lane, int]:
        return dict(self._in_flight)

    def set_share(self, share: float) -> None:
        """This worker's part of the models' rates: owned partitions over all partitions.

        Without partitions nothing new begins, and the pace stays as it was: at a rate of nothing, one call that was still waiting
        would hold up its model for years.
        """
        if share <= 0:
            return
        self._share = share
        for gate in self._gates.values():
            for pace in (gate.requests, gate.tokens):
                if pace is not None:
                    pace.set_share(share)

    def pause(self, model: Model, seconds: float) -> None:
        """No call of this model begins for so long: its provider said so to one of them."""
        gate = self._gate(model)
        gate.paused_until = max(gate.paused_until, self._clock() + seconds)

    async def acquire(self, model: Model, lane: Lane, tenant: str, tokens: int) -> Permit:
        """Waits for a permit of this lane and model; `tokens`: the estimate of input and output."""
        gate = self._gate(model)
        waiter = _Waiter(lane, tenant, tokens, asyncio.get_running_loop().create_future())
        gate.queue.put(waiter)
        self._pump(gate)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled():
                self._release(gate, lane)
            raise
        return Permit(tokens, lambda permit: self._return(gate, waiter, permit))

    def _return(self, gate: _Gate, waiter: _Waiter, permit: Permit) -> None:
        if gate.tokens is not None and permit.used_tokens is not None:
            gate.tokens.give_back(waiter.tokens - permit.used_tokens)
            if permit.used_tokens and permit.tokens:
                gate.usual += 0.05 * (permit.used_tokens / permit.tokens - gate.usual)
        self._release(gate, waiter.lane)

    def _gate(self, model: Model) -> _Gate:
        gate = self._gates.get(model.name)
        if gate is None:
            rpm, tpm = model.requests_per_minute, model.tokens_per_minute
            requests = None if rpm is None else Pace(rpm, share=self._share, use=self._use)
            tokens = None if tpm is None else Pace(tpm, share=self._share, use=self._use)
            gate = self._gates[model.name] = _Gate(model, requests, tokens)
        return gate

    def _open(self, lane: Lane) -> bool:
        return self._in_flight[lane] < self._permits[lane]

    def _release(self, gate: _Gate, lane: Lane) -> None:
        gate.in_flight -= 1
        self._in_flight[lane] -= 1
        # The lane's permit may be what another model's calls were waiting for.
        self._pump(gate)
        for other in self._gates.values():
            if other is not gate and other.queue.waits(self._open):
                self._pump(other)

    def _pump(self, gate: _Gate) -> None:
        while gate.in_flight < gate.model.max_in_flight and gate.queue.waits(self._open):
            now = self._clock()
            wait = gate.ready_at() - now
            if wait > 0:
                self._set_alarm(gate, wait)
                return
            waiter = gate.queue.pop(self._open)
            if waiter is None:
                return
            gate.in_flight += 1
            self._in_flight[waiter.lane] += 1
            if gate.requests is not None:
                gate.requests.take(1, now)
            if gate.tokens is not None:
                waiter.tokens *= gate.usual
                gate.tokens.take(waiter.tokens, now)
            waiter.granted.set_result(None)

    def _set_alarm(self, gate: _Gate, wait: float) -> None:
        if gate.alarm is None:
            gate.alarm = asyncio.create_task(self._ring(gate, wait))

    async def _ring(self, gate: _Gate, wait: float) -> None:
        await self._sleep(wait)
        gate.alarm = None
        self._pump(gate)
