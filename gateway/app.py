"""The HTTP API: OpenAI's chat completions in front of the topics.

POST /v1/feedback           what an answer was worth, produced to `feedback`
POST /v1/revocations        an answer was wrong: it leaves the caches, and everyone who was given it is listed
POST /v1/chat/completions   produced to `requests`, answered from `responses`
GET  /v1/models, /models    what may be asked for
GET  /health, /metrics      for machines
GET  /config                settings in force, secrets masked
POST /debug/estimate-complexity
"""

import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from ..agents.settings_shown import Effective
from ..connectors.asker import Asker, NoAnswerYet
from ..pipeline.complexity import Weights, estimate
from ..pipeline.errors import EngineError
from ..pipeline.feedback import line_of, read_feedback
from ..pipeline.ingest import Door, admit
from ..pipeline.models import Catalogue
from ..pipeline.route import features_of
from ..schemas.requests import Identity
from .keys import Access
from .measures import Measures
from .openai_form import JOB, Question, chunks, completion, engine_headers, question_of
from .refusals import Refusal, of_error, refused
from .revocations import Costs, look_up, read_report

_LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})


@dataclass(frozen=True, slots=True)
class Gateway:
    """All that the API is made of."""

    asker: Asker
    door: Door
    access: Access
    timeout_s: float
    weights: Weights
    shown: Callable[[], Iterable[Effective]]
    now_ms: Callable[[], int]
    registry: CollectorRegistry
    costs: Costs
    """Of the answers that were given."""
    feedback_topic: str = "feedback"
    corrections_topic: str = "corrections"

    @property
    def catalogue(self) -> Catalogue:
        return self.door.catalogue


def create_app(gateway: Gateway) -> FastAPI:
    """The application; it connects to Kafka when it starts and lets go when it ends."""
    measures = Measures(gateway.registry, lambda: gateway.asker.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await gateway.asker.start()
        yield
        await gateway.asker.stop()

    app = FastAPI(title="Cost-optimized inference engine", lifespan=lifespan)

    @app.exception_handler(Refusal)
    async def refusal(_: Request, error: Refusal) -> Response:
        measures.refused(error.code)
        return JSONResponse(error.body, error.status, error.headers)

    _add_questions(app, gateway, measures)
    _add_views(app, gateway, measures)
    return app


def _add_questions(app: FastAPI, gateway: Gateway, measures: Measures) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        tenant = admitted(gateway, request)
        request_id = _request_id(request)
        shown_id = request.headers.get("x-request-id") or request_id
        payload = await _payload(request, gateway.door.max_body_bytes)
        question = question_of(payload, request_id, request.headers)
        began = time.perf_counter()
        body, headers = await _answer(gateway, tenant, question, shown_id)
        measures.answered(body["engine"]["cache"]["tier"], time.perf_counter() - began)
        if question.stream:
            return StreamingResponse(chunks(body, with_usage=question.with_usage), 200, headers, "text/event-stream")
        return Response(orjson.dumps(body), 200, headers, "application/json")

    @app.post("/v1/feedback")
    async def feedback(request: Request) -> Response:
        tenant = admitted(gateway, request)
        payload = await _payload(request, gateway.door.max_body_bytes)
        try:
            rated = read_feedback(payload, tenant, JOB, gateway.now_ms())
            await gateway.asker.tell(gateway.feedback_topic, rated.identity, line_of(rated))
        except EngineError as error:
            raise of_error(error) from error
        return Response(status_code=202)

    @app.post("/v1/revocations")
    async def revocations(request: Request) -> JSONResponse:
        tenant = admitted(gateway, request)
        identity, reason = read_report(await _payload(request, gateway.door.max_body_bytes), tenant)
        try:
            correction, given = await look_up(gateway.costs, identity, reason, gateway.now_ms())
            line = correction.model_dump_json().encode()
            await gateway.asker.tell(gateway.corrections_topic, identity, line, key=correction.key)
        except EngineError as error:
            raise of_error(error) from error
        return JSONResponse({"object": "revocation", "source_id": correction.fingerprint, "served": given}, 201)

    @app.post("/debug/estimate-complexity")
    async def estimate_complexity(request: Request) -> JSONResponse:
        tenant = admitted(gateway, request)
        body = _prompt_as_message(await _payload(request, gateway.door.max_body_bytes))
        features = features_of(_admit(gateway, tenant, question_of(body, "estimate", request.headers)))
        score = estimate(
            features.text, input_tokens=features.input_tokens, turns=features.turns, max_tokens=features.max_tokens, weights=gateway.weights
        )
        factors = {name: round(getattr(score, name), 4) for name in ("length", "reasoning", "domain", "context", "output")}
        return JSONResponse({"complexity": round(score.score, 4), "tier": score.tier, "factors": factors})


def _add_views(app: FastAPI, gateway: Gateway, measures: Measures) -> None:
    @app.get("/v1/models")
    async def openai_models(request: Request) -> JSONResponse:
        admitted(gateway, request)
        names = [("auto", "inference-engine"), *((m.name, m.provider) for m in gateway.catalogue.models if m.enabled)]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": owner} for name, owner in names]
        return JSONResponse({"object": "list", "data": data})

    @app.get("/models")
    async def models(request: Request) -> JSONResponse:
        admitted(gateway, request)
        return JSONResponse(
            {"models": [_described(m) for m in gateway.catalogue.models], "default_premium": gateway.catalogue.default_premium}
        )

    @app.get("/health")
    async def health() -> JSONResponse:
        healthy = gateway.asker.alive
        return JSONResponse({"status": "healthy" if healthy else "unhealthy", **measures.summary()}, 200 if healthy else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(gateway.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/config")
    async def config(request: Request) -> JSONResponse:
        admitted(gateway, request)
        return JSONResponse({e.name: {"value": e.value, "source": e.source} for e in gateway.shown()})


def admitted(gateway: Gateway, request: Request) -> str:
    """The caller's tenant. Raises `Refusal` (401)."""
    client = request.client.host if request.client else None
    tenant = gateway.access.tenant(request.headers.get("authorization"), client)
    if tenant is None:
        raise refused("invalid_api_key", "no valid key: send `Authorization: Bearer KEY` with a key of this gateway (API_KEYS_FILE)")
    # Without keys a page in this machine's browser must not ask in the user's name, by DNS that points its own name here.
    if gateway.access.keys is None and (request.headers.get("host") or "").rsplit(":", 1)[0] not in _LOCAL_NAMES:
        raise refused("invalid_api_key", "without API_KEYS_FILE this gateway answers only to 127.0.0.1 and localhost")
    return tenant


def _request_id(request: Request) -> str:
    """The caller's own id, so that asking again means the same request; else a new one.

    Not `X-Request-Id`: proxies and tracing give one to several requests. It is given back and means nothing here.
    """
    given = request.headers.get("idempotency-key")
    if given is None:
        return f"req-{uuid.uuid4().hex}"
    if not 0 < len(given) <= 256:
        raise refused("invalid_request", "Idempotency-Key has 1 to 256 characters")
    return given


async def _payload(request: Request, limit: int) -> bytes:
    # Any other type a browser would send across sites without asking first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise refused("not_json", "send the body as content-type application/json")
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > limit:
            raise refused("request_too_large", f"the body has more than {limit:,} bytes: it was not sent; shorten it")
    return bytes(data)


def _admit(gateway: Gateway, tenant: str, question: Question) -> Any:
    """The same door as behind the topic: what it refuses needs no way through Kafka."""
    try:
        return admit(question.raw, tenant, gateway.now_ms(), gateway.door)
    except EngineError as error:
        raise of_error(error) from error


async def _answer(gateway: Gateway, tenant: str, question: Question, shown_id: str) -> tuple[dict[str, Any], dict[str, str]]:
    """`shown_id`: what the answer's header `x-request-id` says."""
    _admit(gateway, tenant, question)
    request_id = question.line.custom_id
    identity = Identity(tenant=tenant, job=question.line.engine.job or JOB, custom_id=request_id)
    try:
        response = await gateway.asker.ask(identity, question.raw, gateway.timeout_s)
    except NoAnswerYet:
        refusal = refused(
            "no_answer_yet",
            f"no answer within {gateway.timeout_s:g} s. The request goes on and is paid once: ask the same with the header "
            f"`Idempotency-Key: {request_id}` to get its answer",
        )
        refusal.headers.update(engine_headers(request_id, shown_id))
        raise refusal from None
    except EngineError as error:
        raise of_error(error) from error
    return completion(response), engine_headers(request_id, shown_id, response.engine)


def _prompt_as_message(payload: bytes) -> bytes:
    """`{"prompt": "..."}` is short for one user message."""
    try:
        body = orjson.loads(payload)
    except ValueError:
        return payload
    if isinstance(body, dict) and isinstance(prompt := body.pop("prompt", None), str):
        body["messages"] = [{"role": "user", "content": prompt}]
        return orjson.dumps(body)
    return payload


def _described(model: Any) -> dict[str, Any]:
    given = model.prices
    return {
        "name": model.name,
        "provider": model.provider,
        "tier": model.tier,
        "enabled": model.enabled,
        "why_disabled": model.why_disabled or None,
        "context_tokens": model.context_tokens,
        "max_output_tokens": model.max_output_tokens,
        "usd_per_million_tokens": {"input": str(given.input), "output": str(given.output)} if given else "by genai-prices",
        "aliases": list(model.aliases),
    }
