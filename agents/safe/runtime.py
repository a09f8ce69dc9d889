"""Checks that the installed Faust is the one whose private methods this package replaces."""

import hashlib
import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ...pipeline.errors import ConfigError
from .fingerprints import FAUST

FAUST_VERSION = "0.15.3"


def _find(path: str) -> Callable[..., Any]:
    module, _, attributes = path.partition(":")
    found: Any = import_module(module)
    for name in attributes.split("."):
        found = inspect.getattr_static(found, name)
    for wrapper in ("fget", "fun", "__func__", "__wrapped__"):
        found = getattr(found, wrapper, None) or found
    return found  # type: ignore[no-any-return]


def fingerprint(path: str) -> str:
    """First 12 hex digits of the SHA-256 of the source of `module:Class.method`; empty where it does not exist."""
    try:
        source = inspect.getsource(_find(path))
    except (AttributeError, ImportError, OSError, TypeError):
        return ""
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def assert_runtime() -> None:
    """Raises ConfigError where Faust's compiled extension is missing, or Faust is another than the tested one."""
    try:
        found = version("faust-streaming")
    except PackageNotFoundError:
        found = "none"
    if found != FAUST_VERSION:
        raise ConfigError(f"faust-streaming {found} is installed, records are safe only on {FAUST_VERSION}: install that version.")
    try:
        import_module("faust._cython.streams")
    except ImportError as exc:
        raise ConfigError(
            "faust-streaming was installed without its compiled part (faust._cython.streams): install a wheel of it."
        ) from exc
    changed = sorted(path for path, expected in FAUST.items() if fingerprint(path) != expected)
    if changed:
        raise ConfigError(f"faust-streaming {found} was changed in {', '.join(changed)}: reinstall it, records could be lost.")
