"""What the translations of a chat completion request into another protocol have in common: fields, one by one.

A field that would change the answer and has no counterpart is `Rejected`, never dropped in silence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...pipeline.errors import Rejected
from ...schemas.record import JsonObject

Put = Callable[[JsonObject, Any], None]
"""Puts the value of a field into the request that is sent. Raises `Rejected` where it can't be asked for."""


@dataclass(frozen=True, slots=True)
class Limited:
    """A protocol that can't be asked for everything."""

    name: str
    """As people know it."""

    def cannot(self, what: str) -> Rejected:
        return Rejected(
            f"{self.name} can't be asked with {what}; leave it out, or ask a model of another provider", code="unsupported_by_provider"
        )

    def only(self, name: str, *neutral: Any) -> Put:
        """For a field that is not known there: the values that change nothing are left out."""

        def check(request: JsonObject, value: Any) -> None:
            if value not in neutral:
                raise self.cannot(f"{name} = {value!r}")

        return check

    def without_counterpart(self) -> dict[str, Put]:
        """What only chat completions know; a protocol that knows some of it puts these behind."""
        return {
            "n": self.only("n", 1),
            "logprobs": self.only("logprobs", False),
            "top_logprobs": self.only("top_logprobs", 0),
            "frequency_penalty": self.only("frequency_penalty", 0),
            "presence_penalty": self.only("presence_penalty", 0),
            "logit_bias": self.only("logit_bias", {}),
            "modalities": self.only("modalities", ["text"]),
        }

    def temperature(self, request: JsonObject, value: Any) -> None:
        if isinstance(value, (int, float)) and value > 1:
            raise self.cannot("a temperature above 1")
        request["temperature"] = value


def as_is(name: str) -> Put:
    """Under this name."""

    def put(request: JsonObject, value: Any) -> None:
        request[name] = value

    return put


def stop(request: JsonObject, value: Any) -> None:
    request["stop_sequences"] = [value] if isinstance(value, str) else value


def convert(request: JsonObject, body: JsonObject, fields: dict[str, Put], ignored: set[str], to: Limited) -> None:
    """Puts every field of `body` that is neither `ignored` nor None into the request."""
    for name, value in body.items():
        if value is None or name in ignored:
            continue
        put = fields.get(name)
        if put is None:
            raise to.cannot(f"{name!r}")
        put(request, value)
