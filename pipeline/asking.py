"""A question to a model about answers, as a call: a flight of its own, that is booked to a request and answers nobody."""

from ..schemas.record import JsonObject, Lane
from ..schemas.requests import Asks, Call, Request, Route, Waiter
from .models import Model


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
