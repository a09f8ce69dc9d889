"""What every record on a topic has in common."""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1

JsonObject = dict[str, Any]
"""A JSON object as parsed; opaque to us unless a field is named."""

PICO_PER_USD = 10**12


class Record(BaseModel):
    """A frozen record; unknown fields are refused, so that a renamed field can't vanish silently."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Lane(StrEnum):
    """How urgent a request is; each lane has its own topics and permits."""

    EXPRESS = "express"
    STANDARD = "standard"
    BATCH = "batch"
