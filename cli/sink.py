"""`inference-engine sink`: the process that stores costs and answers SQL about them; `up` and `run` start it themselves."""

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer

from ..agents.settings import Settings
from ..agents.sink_worker import SinkOptions, run_sink
from ..connectors.data_folder import DataFolder
from ..connectors.process import end_within
from ..pipeline.errors import ConfigError, EngineError
from .children import SINK
from .command_settings import load_settings

EXIT_S = 20.0
"""For the interpreter to end once the sink has."""


def sink_command(
    state_file: Annotated[Path | None, typer.Option(help="Written when ready; default in the data folder.", show_default=False)] = None,
    port: Annotated[int, typer.Option(help="Of the HTTP door on loopback; 0: any free one.", min=0, max=65535)] = 0,
) -> None:
    """Store costs from their topic and answer SQL about them, until stopped."""
    try:
        options = sink_options(load_settings(), state_file=state_file, port=port)
        asyncio.run(_until_signal(options))
    except EngineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


def sink_options(settings: Settings, *, state_file: Path | None = None, port: int = 0) -> SinkOptions:
    """Raises `ConfigError` where no broker is named: this process starts none."""
    if not settings.brokers:
        raise ConfigError("The sink needs KAFKA_BROKERS; `inference-engine up` starts a Kafka and the sink together.")
    folder = DataFolder(settings.data_dir)
    return SinkOptions(
        brokers=tuple(settings.brokers),
        folder=folder,
        state_file=state_file or folder.state_file(SINK),
        prefix=settings.kafka_topic_prefix,
        clickhouse_url=settings.clickhouse_url,
        port=port,
    )


async def _until_signal(options: SinkOptions) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await run_sink(options, stop=stop)
    finally:
        end_within(EXIT_S)
