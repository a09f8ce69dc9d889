"""How numbers look to people, rounded here and nowhere else, and how wide the tables are that hold them."""

import sys
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from rich.console import Console

from ..connectors.sink_http import plain_decimal


def console_of_output() -> Console:
    """As wide as the terminal; wide enough for a table where there is none."""
    return Console(width=None if sys.stdout.isatty() else 120)


def dollars(amount: Decimal) -> str:
    """`$1,234.56`; small amounts keep three significant digits: `$0.0000412`."""
    if not amount:
        return "$0"
    magnitude = abs(amount)
    places = 2 if magnitude >= 10 else 4 if magnitude >= Decimal("0.1") else min(12, 2 - magnitude.adjusted())
    rounded = magnitude.quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_EVEN)
    return f"{'-' if amount < 0 else ''}${rounded:,f}"


def shown(column: str, value: Any) -> str:
    """A cell of a report, by the unit that its column's name ends in."""
    if value is None:
        return "–"
    if column.endswith("_usd"):
        return dollars(Decimal(value))
    if column.endswith("_percent"):
        return f"{value:.1f} %"
    if column.endswith("_ms"):
        return f"{int(value):,} ms"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value) or "(none)"


def exact(value: Any) -> str:
    """A cell of a query's result with all its digits."""
    if isinstance(value, Decimal):
        return plain_decimal(value)
    return "" if value is None else str(value)


def heading(column: str) -> str:
    """`cost_per_request_usd` -> `cost per request`: the unit stands in the cells."""
    for unit in ("_usd", "_percent", "_ms"):
        column = column.removesuffix(unit)
    return column.replace("_", " ")
