"""Cost-optimized inference engine: bulk LLM requests on Kafka for the least money at a stated error bound."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import BatchingConfig, CachingConfig, RoutingConfig, Settings

__version__ = "0.1.0"
__all__ = ["BatchingConfig", "CachingConfig", "RoutingConfig", "Settings", "__version__"]


def __getattr__(name: str) -> Any:
    """Imported on first use: the command line must not pay for what it doesn't need."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import config

    return getattr(config, name)
