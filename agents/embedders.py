"""Which embedder the settings name."""

from datetime import date
from pathlib import Path

import structlog

from ..connectors.embedder import FoundEmbedder, find_embedder, load_embedder, missing_extra
from ..connectors.embedding_endpoint import CAREFUL, EndpointEmbedder
from ..pipeline.errors import Unpriced
from ..pipeline.prices import embedding_rate
from .embedding_costs import EmbeddingPrice
from .settings import Settings, secret

log = structlog.get_logger(__name__)

OPENAI_MODEL = "text-embedding-3-small"
OPENAI_TOKENS = dict.fromkeys((OPENAI_MODEL, "text-embedding-3-large", "text-embedding-ada-002"), 8192)
"""What OpenAI's models take; they refuse what is longer."""


def not_installed(settings: Settings) -> str | None:
    """Why the semantic tier is off though nobody turned it off; None where it is not. Loads nothing."""
    caching = settings.caching
    if not caching.semantic_enabled or settings.embedding_base_url is not None or settings.embedding_model is not None:
        return None
    return missing_extra()


def embedder_of(settings: Settings) -> FoundEmbedder:
    """None, with the reason, where the semantic tier is off. Takes seconds where a model is loaded. Raises `ConfigError`."""
    caching = settings.caching
    if not caching.semantic_enabled:
        return FoundEmbedder(None, "CACHE_SEMANTIC_ENABLED is false")
    return configured_embedder(settings)


def embedding_price(settings: Settings, day: date) -> EmbeddingPrice | None:
    """What the endpoint's texts cost; None where the model runs here. Unknown prices are 0, with a warning."""
    if settings.embedding_base_url is None:
        return None
    model, given = settings.embedding_model or OPENAI_MODEL, settings.embedding_price_per_mtok
    if given is not None:
        return EmbeddingPrice(model, int(given.scaleb(6)))
    try:
        if model in OPENAI_TOKENS:
            return EmbeddingPrice(model, embedding_rate(model, day))
    except Unpriced as error:
        log.warning(str(error), model=model)
    log.warning("embeddings are booked at no cost, for their price is not known: set EMBEDDING_PRICE_PER_MTOK", model=model)
    return EmbeddingPrice(model, 0)


def configured_embedder(settings: Settings) -> FoundEmbedder:
    """The same, whether the engine's semantic tier is on or not."""
    caching = settings.caching
    if settings.embedding_base_url is not None:
        model = settings.embedding_model or OPENAI_MODEL
        tokens = settings.embedding_max_tokens or OPENAI_TOKENS.get(model)
        if tokens is None:
            tokens = CAREFUL
            log.warning("EMBEDDING_MAX_TOKENS is not set: longer texts and answers are not compared", model=model, max_tokens=tokens)
        key = secret(settings.embedding_api_key) or "none"
        endpoint = EndpointEmbedder(
            model, caching.embedding_dimension, base_url=settings.embedding_base_url, api_key=key, max_tokens=tokens
        )
        return FoundEmbedder(endpoint, f"{model} at {settings.embedding_base_url}")
    if settings.embedding_model is None:
        return find_embedder(caching.embedding_dimension, threads=settings.embedding_threads, backend=settings.embedding_backend)
    embedder = load_embedder(
        Path(settings.embedding_model),
        dimension=caching.embedding_dimension,
        threads=settings.embedding_threads,
        backend=settings.embedding_backend,
    )
    return FoundEmbedder(embedder, settings.embedding_model)
