"""The settings of a command, by the environment and `.env`; what they warn of goes to standard error: standard output is for results."""

import sys

import structlog

from ..agents import settings as known
from ..agents.settings import Settings


def load_settings() -> Settings:
    """Every command's way to its settings. Raises `ConfigError`."""
    # Whatever is standard error by then: whoever calls this in a process of their own may have put another file in its place since.
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    return known.load_settings()
