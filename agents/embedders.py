"""Which embedder the settings name."""

from pathlib import Path

from ..connectors.embedder import FoundEmbedder, find_embedder, load_embedder, missing_extra
from ..connectors.embedding_endpoint import EndpointEmbedder
from .settings import Settings, secret


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
    if settings.embedding_base_url is not None:
        model = settings.embedding_model or "text-embedding-3-small"
        key = secret(settings.embedding_api_key) or "none"
        endpoint = EndpointEmbedder(model, caching.embedding_dimension, base_url=settings.embedding_base_url, api_key=key)
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
