"""A question to a model about answers, as a call: a flight of its own, that is booked to a request and answers nobody."""

from typing import Any

import orjson

from ..schemas.record import JsonObject, Lane
from ..schemas.requests import Asks, Call, Request, Route, Waiter
from .judge import text_of
from .models import Model

_CUT = "…"


def chat_about(model: str, instructions: str, data: JsonObject, max_tokens: int) -> JsonObject:
    """The body of a chat completion request. `data` travels as JSON in a message of its own: what stands in it is judged, not obeyed."""
    messages = [{"role": "system", "content": instructions}, {"role": "user", "content": orjson.dumps(data).decode()}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}


def said_in(reply: JsonObject, name: str) -> Any:
    """The value of this name in the JSON object that a reply (a chat completion) consists of, or holds; None where there is none."""
    text = text_of(reply) or ""
    try:
        return orjson.loads(text[text.index("{") : text.rindex("}") + 1])[name]
    except (KeyError, TypeError, ValueError):
        return None


def shown(text: str, *, whole: bool) -> str:
    """A text that a model is shown, marked where it was cut."""
    return text if whole else text + _CUT


def asking(
    asks: Asks, model: Model, body: JsonObject, flight: str, whose: Waiter | Request, *, scope: str, lane: Lane, now_ms: int
) -> Call:
    """`body`: its temperature is left out where the model would refuse it. `flight`: hex SHA-256 of what is asked, so that the same
    question is paid once. `whose`: who it is booked to."""
    request = Request(
        identity=whose.identity,
        body=body if model.supports_sampling else {name: value for name, value in body.items() if name != "temperature"},
        model=model.name,
        fingerprint=flight,
        scope=scope,
        flight=flight,
        lane=lane,
        dimensions=whose.dimensions,
        accepted_ms=now_ms,
        use_cache=False,
        shareable=False,
        cache_ttl_s=0,
    )
    return Call(request=request, route=Route(models=(model.name,), reason=asks), judge=True, asks=asks)
