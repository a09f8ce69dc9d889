"""Small builders for the tests of pure stages."""

from decimal import Decimal

from inference_engine.pipeline.fingerprint import fingerprint_and_scope, flight_id
from inference_engine.pipeline.models import Catalogue, Model, Prices
from inference_engine.schemas.answers import Answer, Usage
from inference_engine.schemas.record import JsonObject, Lane
from inference_engine.schemas.requests import Dimensions, Identity, Request

NOW = 1_764_000_000_000


def catalogue() -> Catalogue:
    def model(name: str, tier: str, price: str) -> Model:
        prices = Prices(input=Decimal(price), output=Decimal(price) * 4)
        return Model(
            name=name,
            provider="simulated",
            provider_model=name,
            tier=tier,  # type: ignore[arg-type]
            context_tokens=100_000,
            max_output_tokens=1_000,
            prices=prices,
        )

    return Catalogue((model("small", "economy", "1"), model("big", "premium", "10")), default_premium="big")


def identity(custom_id: str = "r1", job: str = "j", tenant: str = "t") -> Identity:
    return Identity(tenant=tenant, job=job, custom_id=custom_id)


def body(text: str = "What is a cat?", **more: object) -> JsonObject:
    return {"model": "auto", "messages": [{"role": "user", "content": text}], "temperature": 0, **more}


def request(
    text: str = "What is a cat?",
    *,
    who: Identity | None = None,
    model: str = "auto",
    accepted_ms: int = NOW,
    ttl_s: int = 3600,
    user_id: str = "",
    max_cost_pico: int | None = None,
) -> Request:
    who = who or identity()
    what = body(text)
    fingerprint, scope = fingerprint_and_scope(who.tenant, model, what, None)
    return Request(
        identity=who,
        body=what,
        model=model,
        fingerprint=fingerprint,
        scope=scope,
        flight=flight_id(fingerprint, who.key),
        lane=Lane.STANDARD,
        dimensions=Dimensions(user_id=user_id),
        accepted_ms=accepted_ms,
        cache_ttl_s=ttl_s,
        max_cost_pico=max_cost_pico,
    )


def answer(text: str = "An animal.", *, model: str = "small", paid_pico: int = 1_000, finish: str = "stop") -> Answer:
    message = {"role": "assistant", "content": text}
    return Answer(
        body={"id": "c1", "object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish}]},
        model_used=model,
        usage=Usage(input_tokens=100, output_tokens=10),
        paid_pico=paid_pico,
        finish_reason=finish,
        request_id="p1",
    )
