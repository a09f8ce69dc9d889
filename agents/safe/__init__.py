"""Faust that loses nothing: commits below the lowest unfinished event, awaited writes, own positioning and recovery.

Start at `application.create_app`, `delivery.consume` and `running.run_app`.
"""

from .application import SafeApp, create_app
from .channels import hand_over, items, send_through, serve
from .delivery import Delivered, Gate, Turns, consume
from .outcomes import DeadLetter, OversizedRow, Stale
from .partitioner import partition_for
from .running import run_app
from .runtime import assert_runtime
from .table import ChangelogSpec, SafeTable

__all__ = [
    "ChangelogSpec",
    "DeadLetter",
    "Delivered",
    "Gate",
    "OversizedRow",
    "SafeApp",
    "SafeTable",
    "Stale",
    "Turns",
    "assert_runtime",
    "consume",
    "create_app",
    "hand_over",
    "items",
    "partition_for",
    "run_app",
    "send_through",
    "serve",
]
