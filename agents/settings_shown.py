"""The settings as they may be shown: where each was said, secrets masked."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from .settings import Settings, env_names, redacted


@dataclass(frozen=True, slots=True)
class Effective:
    """One setting as it is in force; secrets are masked."""

    name: str
    value: Any
    source: str
    """`environment`, `.env` or `default`."""


def effective(settings: Settings, environ: Mapping[str, str] = os.environ) -> Iterator[Effective]:
    """Every setting by its environment name, in the order of the settings' own page. Reads `.env` for the sources."""
    dotenv, names = _dotenv(), env_names()
    for name, path in names.items():
        value: Any = settings
        for part in path:
            value = getattr(value, part)
        yield Effective(name, _jsonable(redacted(value)), _source(name, environ, dotenv))
    for switch, enabled in settings.models_enabled.items():
        name = f"MODELS_{switch.upper()}_ENABLED"
        yield Effective(name, enabled, _source(name, environ, dotenv))


def _source(name: str, environ: Mapping[str, str], dotenv: Mapping[str, str | None]) -> str:
    return "environment" if environ.get(name) else ".env" if dotenv.get(name) else "default"


def _dotenv() -> dict[str, str | None]:
    path = Path(".env")
    return dotenv_values(path, encoding="utf-8") if path.is_file() else {}


def _jsonable(value: Any) -> Any:
    return str(value) if isinstance(value, Path | Decimal) else value
