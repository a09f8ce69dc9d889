"""`inference-engine gateway`: the HTTP API, in front of a cluster or of this machine's own engine."""

import os
import socket
from typing import Annotated

import typer

from ..agents.settings import Settings
from ..pipeline.errors import ConfigError
from .engine import engine


def gateway_command(
    host: Annotated[str | None, typer.Option(help="Where it listens; default: API_HOST.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="Default: API_PORT.", min=0, max=65535, show_default=False)] = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start the engine on this machine where none runs.")] = True,
) -> None:
    """Serve the OpenAI-compatible HTTP API in front of the topics, until stopped."""
    from ..gateway.server import serve

    # The processes of the gateway read the settings anew: what was said here has to be in their environment.
    os.environ.update({name: str(value) for name, value in (("API_HOST", host), ("API_PORT", port)) if value is not None})
    found = engine()
    check_port(found.settings)
    os.environ["KAFKA_BROKERS"] = found.start(_tell) if start else found.running()
    _tell(f"Listening on http://{found.settings.api_host}:{found.settings.api_port}/v1 (stop with Ctrl-C; the engine goes on)")
    serve(engine().settings)


def check_port(settings: Settings) -> None:
    """Raises `ConfigError` where the port can't be had: said before anything is started."""
    family = socket.AF_INET6 if ":" in settings.api_host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.api_host, settings.api_port))
        except OSError as error:
            raise ConfigError(
                f"the gateway can't listen on {settings.api_host}:{settings.api_port} ({error.strerror}); nothing was started. "
                "Choose another: --port 8001, or API_PORT"
            ) from None


def _tell(line: str) -> None:
    typer.echo(line, err=True)
