"""How many calls may be under way, and how fast they may begin.

    per lane    so many calls in flight: a full batch lane never takes an express permit
    per model   so many in flight; none while its circuit breaker is open
    per key     of a model's provider: requests and tokens per minute; a pause when the provider says so

Waiting calls of one model begin in the order express, standard, batch, and within a lane tenant by tenant, so that a
flood of one tenant does not starve another. While a model's circuit breaker is half open, a call that has not failed there
comes first: what another one fails by may be its own fault, and would keep everybody waiting. A call takes the key that is
ready, of several the one with fewest calls under way. How fast a key may be used is settled in `pipeline/rates.py`, whether a
model is well in `pipeline/breaker.py`.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ..pipeline.breaker import Breaker, BreakerPolicy, State
from ..pipeline.models import Model
from ..pipeline.rates import BLIND_USE, KeyRates, Kind, RateSeen, amounts
from ..schemas.record import Lane

_ORDER = (Lane.EXPRESS, Lane.STANDARD, Lane.BATCH)


class _Queue:
    """Waiting calls of one model: lanes by rank, tenants of a lane in turns."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, OrderedDict[str, deque[_Waiter]]] = {lane: OrderedDict() for lane in _ORDER}

    def put(self, waiter: "_Waiter", *, first: bool = False) -> None:
        waiting = self._lanes[waiter.lane].get(waiter.tenant)
        if waiting is None:
            waiting = self._lanes[waiter.lane][waiter.tenant] = deque()
        if first:
            waiting.appendleft(waiter)
        else:
            waiting.append(waiter)

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

    def pop_unfailed(self, open_lanes: Callable[[Lane], bool]) -> "_Waiter | None":
        """The first waiter whose request has not failed on this model; None where there is none."""
        for lane in _ORDER:
            tenants = self._lanes[lane]
            for tenant, waiting in tenants.items() if open_lanes(lane) else ():
                found = next((w for w in waiting if not w.failed and not w.granted.done()), None)
                if found is not None:
                    waiting.remove(found)
                    if not waiting:
                        del tenants[tenant]
                    return found
        return None

    def waits(self, open_lanes: Callable[[Lane], bool]) -> bool:
        return any(tenants and open_lanes(lane) for lane, tenants in self._lanes.items())


@dataclass(slots=True)
class _Waiter:
    lane: Lane
    tenant: str
    estimated: dict[Kind, float]
    granted: "asyncio.Future[None]"
    failed: bool = False
    """Its request has failed on this model before."""
    began: float = 0.0
    key: int = 0
    taken: dict[Kind, float] = field(default_factory=dict)
    probe: bool = False


@dataclass(slots=True)
class _Key:
    """One key of the model's provider."""

    rates: KeyRates
    in_flight: int = 0
    paused_until: float = float("-inf")

    def ready_at(self) -> float:
        return max(self.paused_until, self.rates.ready_at())


@dataclass(slots=True)
class _Gate:
    """The limits of one model."""

    model: Model
    keys: list[_Key]
    breaker: Breaker
    queue: _Queue = field(default_factory=_Queue)
    in_flight: int = 0
    alarm: "asyncio.Task[None] | None" = None
    alarm_at: float = 0.0

    def ready_at(self) -> float:
        return max(self.breaker.ready_at(), min(key.ready_at() for key in self.keys))

    def next_key(self, now: float) -> int:
        """Of those that are ready the one with the fewest calls under way."""
        ready = [i for i, key in enumerate(self.keys) if key.ready_at() <= now]
        return min(ready, key=lambda i: self.keys[i].in_flight)


class Permit:
    """The right to make one call with one key; `release` it once the call is over, after saying what came of it."""

    def __init__(self, key: int, give_up: Callable[["Permit"], None]) -> None:
        self.key = key
        """Number of the provider's key to call with."""
        self.used: tuple[int, int] | None = None
        """Tokens of input and output, when they are known: the difference to the estimate is given back."""
        self.rates: Sequence[RateSeen] = ()
        """What the reply says about the limits."""
        self.well: bool | None = None
        """What the call says about its model; see `pipeline.breaker.verdict`."""
        self.rate_limited = False
        self._give_up: Callable[[Permit], None] | None = give_up

    def release(self) -> None:
        if self._give_up is not None:
            give_up, self._give_up = self._give_up, None
            give_up(self)


@dataclass(frozen=True, slots=True)
class Health:
    """One model, for people."""

    model: str
    breaker: State
    opened: int
    waiting: bool
    limits: dict[str, float]
    """Per minute, over all keys."""


class Limits:
    """All limits of one worker."""

    def __init__(
        self,
        permits: Mapping[Lane, int],
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        use: float = BLIND_USE,
        keys: Mapping[str, int] | None = None,
        careful: Collection[str] = (),
        breaker: BreakerPolicy | None = None,
    ) -> None:
        """`permits`: calls in flight by lane. `clock`: monotonic seconds. `use`: see `Pace`. `keys`: by provider, where it has more than
        one. `careful`: providers that will say what their limits are, see `KeyRates`."""
        self._permits = dict(permits)
        self._clock, self._sleep, self._use = clock, sleep, use
        self._keys, self._careful, self._breaker = dict(keys or {}), frozenset(careful), breaker or BreakerPolicy()
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
            for key in gate.keys:
                key.rates.set_share(share)

    def pause(self, model: Model, seconds: float, key: int = 0) -> None:
        """No call of this model begins with this key for so long: its provider said so to one of them."""
        paused = self._gate(model).keys[key]
        paused.paused_until = max(paused.paused_until, self._clock() + seconds)

    def keys_of(self, model: Model) -> int:
        return self._keys.get(model.provider, 1)

    def rests(self, model: Model) -> bool:
        """Is its circuit breaker open, so that another model should be asked?"""
        gate = self._gates.get(model.name)
        return gate is not None and gate.breaker.ready_at() > self._clock()

    def waits(self, lane: Lane) -> bool:
        """Do calls of this lane wait for a permit?"""
        return any(gate.queue.waits(lambda other: other is lane) for gate in self._gates.values())

    def health(self) -> list[Health]:
        """The models that were asked so far."""
        now = self._clock()
        return [
            Health(name, gate.breaker.state(now), gate.breaker.opened, gate.queue.waits(lambda _: True), _limits_of(gate))
            for name, gate in sorted(self._gates.items())
        ]

    async def acquire(
        self, model: Model, lane: Lane, tenant: str, tokens: int, output_tokens: int = 0, *, failed: bool = False, first: bool = False
    ) -> Permit:
        """Waits for a permit of this lane and model. `tokens`: the estimate of input and output, of which `output_tokens` are output.
        `failed`: the request has failed on this model before. `first`: before the others of its tenant and lane, who wait for it."""
        gate, granted = self._gate(model), asyncio.get_running_loop().create_future()
        waiter = _Waiter(lane, tenant, amounts(tokens - output_tokens, output_tokens), granted, failed)
        gate.queue.put(waiter, first=first)
        self._pump(gate)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled():
                gate.breaker.gone(probe=waiter.probe)
                self._release(gate, waiter)
            raise
        return Permit(waiter.key, lambda permit: self._return(gate, waiter, permit))

    def _return(self, gate: _Gate, waiter: _Waiter, permit: Permit) -> None:
        now, key = self._clock(), gate.keys[waiter.key]
        used = None if permit.used is None else amounts(*permit.used)
        key.rates.settle(waiter.taken, waiter.estimated, used)
        if permit.well is not None or permit.rate_limited:
            key.rates.heard()
        if permit.rates:
            key.rates.observe(permit.rates, now, now - waiter.began)
        if permit.rate_limited:
            key.rates.refused(now)
        if permit.well is None:
            gate.breaker.gone(probe=waiter.probe)
        elif permit.well:
            gate.breaker.succeeded(probe=waiter.probe)
        else:
            gate.breaker.failed(now, probe=waiter.probe)
        self._release(gate, waiter)

    def _gate(self, model: Model) -> _Gate:
        gate = self._gates.get(model.name)
        if gate is None:
            configured: dict[Kind, float | None] = {"requests": model.requests_per_minute, "tokens": model.tokens_per_minute}
            careful = model.provider in self._careful
            keys = [_Key(KeyRates(configured, share=self._share, use=self._use, careful=careful)) for _ in range(self.keys_of(model))]
            gate = self._gates[model.name] = _Gate(model, keys, Breaker(self._breaker))
        return gate

    def _open(self, lane: Lane) -> bool:
        return self._in_flight[lane] < self._permits[lane]

    def _release(self, gate: _Gate, waiter: _Waiter) -> None:
        gate.in_flight -= 1
        gate.keys[waiter.key].in_flight -= 1
        self._in_flight[waiter.lane] -= 1
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
                for key in gate.keys:
                    key.rates.held()
                self._set_alarm(gate, wait)
                return
            unfailed = gate.queue.pop_unfailed(self._open) if gate.breaker.state(now) == "half_open" else None
            waiter = unfailed or gate.queue.pop(self._open)
            if waiter is None:
                return
            self._begin(gate, waiter, now)
            waiter.granted.set_result(None)

    def _begin(self, gate: _Gate, waiter: _Waiter, now: float) -> None:
        waiter.key, waiter.began = gate.next_key(now), now
        key = gate.keys[waiter.key]
        gate.in_flight += 1
        key.in_flight += 1
        self._in_flight[waiter.lane] += 1
        waiter.probe = gate.breaker.began()
        waiter.taken = key.rates.take(waiter.estimated, now)

    def _set_alarm(self, gate: _Gate, wait: float) -> None:
        """Where a call that tries is under way (`wait` is infinite), its end is waited for, and nothing else."""
        if wait == float("inf"):
            return
        at = self._clock() + wait
        if gate.alarm is not None:
            if at >= gate.alarm_at:
                return
            gate.alarm.cancel()
        gate.alarm_at = at
        gate.alarm = asyncio.create_task(self._ring(gate, wait))

    async def _ring(self, gate: _Gate, wait: float) -> None:
        await self._sleep(wait)
        gate.alarm = None
        self._pump(gate)


def _limits_of(gate: _Gate) -> dict[str, float]:
    found: dict[str, float] = {}
    for key in gate.keys:
        for pace in key.rates.paces:
            found[pace.kind] = found.get(pace.kind, 0.0) + pace.per_minute
    return found
