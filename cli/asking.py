"""When a request without a response is asked again. Pure: times are seconds on any steady clock."""

from dataclasses import dataclass, field

FIRST_WAIT_S = 120.0
LONGEST_WAIT_S = 3600.0


@dataclass(slots=True)
class Asked:
    """One request on its way."""

    row: int
    offset: int
    """Of its line in the input file, to read it again; bytes, as `length`."""
    length: int
    cap: int = 0
    """The most of one call, in pico-dollars."""
    due: float = 0.0
    """When it is asked again."""
    times: int = 0
    limit: int = 0
    """What it may cost in all, earlier calls included: so it is told the engine; pico-dollars."""
    reserved: int = 0
    """What the budget keeps free for it, in pico-dollars."""


@dataclass(slots=True)
class Patience:
    """How long to wait: at least `first_wait`, and three times what the queue in front takes at the pace seen lately."""

    first_wait: float = FIRST_WAIT_S
    _pace: float = 0.0
    _mark: tuple[float, int] = field(default=(0.0, 0))

    def observe(self, now: float, done: int) -> None:
        """Told every few seconds how many responses have come in all."""
        then, before = self._mark
        if now - then < 5 and then:
            return
        if then:
            self._pace = 0.7 * self._pace + 0.3 * (done - before) / (now - then)
        self._mark = (now, done)

    def wait(self, times: int, outstanding: int) -> float:
        """Seconds until a request that was asked `times` times is asked again."""
        queue = 3 * outstanding / self._pace if self._pace > 0.01 else 0.0
        return float(min(max(self.first_wait * 2 ** max(times - 1, 0), queue), max(LONGEST_WAIT_S, self.first_wait)))
