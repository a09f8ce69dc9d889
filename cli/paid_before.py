"""What rows took before they are asked once more, and what is said of them where that has used up their money."""

from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

import orjson

from ..pipeline.respond import usd
from ..schemas.record import PICO_PER_USD
from .outcome import Spent
from .rows import BadRow, Row
from .state import JobDatabase

NOTHING = Spent()


@dataclass(slots=True)
class PaidBefore:
    """By row, all that its responses told so far; each of them tells what the earlier ones told, too.

    The job's sums on disk leave these rows out: so a kill between the writes counts nothing twice, and loses nothing.
    """

    database: JobDatabase
    total: Spent = NOTHING
    _rows: dict[int, Spent] = field(default_factory=dict)
    _most: dict[int, int] = field(default_factory=dict)

    def load(self) -> None:
        found = self.database.load_spent()
        self._rows = {row: spent for row, (spent, _) in found.items()}
        self._most = {row: most for row, (_, most) in found.items() if most is not None}
        self.total = sum(self._rows.values(), NOTHING)

    def __contains__(self, row: int) -> bool:
        return row in self._rows

    def of(self, row: int) -> Spent:
        return self._rows.get(row, NOTHING)

    def clear(self) -> None:
        self.database.forget_spent()
        self.total = NOTHING
        self._rows.clear()
        self._most.clear()

    def forget(self, row: int) -> None:
        """Within a transaction: what the row took is nobody's but the job's from now on."""
        self.database.forget_spent_of(row)
        self.total -= self._rows.pop(row, NOTHING)
        self._most.pop(row, None)

    def put(self, row: int, spent: Spent) -> None:
        """Durable on return, or with the transaction that it is part of."""
        self.database.put_spent(row, spent)
        self.total += spent - self.of(row)
        self._rows[row] = spent

    def allow(self, row: int, most: int) -> None:
        """Before it is asked for: what it may cost in all from now on, in pico-dollars. Of rows that took nothing, nothing is kept."""
        if row in self._rows:
            self.database.put_most(row, most)
            self._most[row] = most

    def allowed(self, row: int, cap: int) -> int:
        """What the row was last allowed to cost in all; `cap`, the most of one call, where it was asked only once."""
        return min(self._most.get(row, cap), self.of(row).pico + cap)


def own_limit(row: Row) -> int | None:
    """What the user allows the row to cost, in pico-dollars; None where nothing is said."""
    given = row.engine.get("max_cost_usd")
    if given is None:
        return None
    try:
        limit = Decimal(str(given)) * PICO_PER_USD
    except InvalidOperation:
        return None  # refused at the engine's door
    return int(limit) if limit.is_finite() and limit >= 0 else None


def paid_in_vain(took: Spent) -> BadRow:
    """Of a row that was asked, and may not be asked again for now."""
    reason = (
        f"no answer came of the calls made for this row, which took or may have taken ${usd(took.pico)}; the most of another one would "
        "exceed --max-cost; run again with a higher one"
    )
    return BadRow("", "over_budget", reason)


def dearer_than_left(cap: int | None) -> BadRow:
    """Of a row that no call was made for. `cap`: of the cheapest model that may still answer it; None where it is not known."""
    most = f"a call of the cheapest model that may answer it can cost up to ${usd(cap)}, more than" if cap else "its most would exceed what"
    return BadRow(
        "", "over_budget", f"the row was not sent: {most} is left of --max-cost; give it max_tokens, or run again with a higher one"
    )


def dearer_than_known(line: bytes, cap: int, took: Spent) -> bytes:
    """The response to a row that was refused for the job's limit: the engine's own message names one that the user never set."""
    data = orjson.loads(line)
    data["error"]["message"] = (
        f"the next call of this row can cost more than the ${usd(cap)} that --max-cost was asked to keep free for it, beside the "
        f"${usd(took.pico)} that it took or may have taken so far; nothing more was paid; to ask it again: --retry-failed"
    )
    return orjson.dumps(data)
