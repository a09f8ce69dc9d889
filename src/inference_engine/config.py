"""The settings under the name that programs know: `from inference_engine.config import Settings, BatchingConfig`."""

from .agents.settings import BatchingConfig, CachingConfig, RoutingConfig, Settings, SettingsWarning, load_settings

__all__ = ["BatchingConfig", "CachingConfig", "RoutingConfig", "Settings", "SettingsWarning", "load_settings"]
