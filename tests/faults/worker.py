"""A worker as the command starts it, with shorter group timings and, on request, a clock that is wrong.

    python -m tests.faults.worker STATE_FILE     settings from the environment, as for `inference-engine worker`

FAULT_CLOCK_OFFSET_MS, FAULT_SESSION_S, FAULT_INTENT_SLACK_S.
"""

import asyncio
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from inference_engine.agents import compose, worker
from inference_engine.agents.names import app_id
from inference_engine.agents.safe import SafeApp, create_app
from inference_engine.agents.settings import load_settings
from inference_engine.connectors.data_folder import DataFolder
from inference_engine.connectors.state_file import remove_state, write_state

OFFSET_MS = int(os.environ.get("FAULT_CLOCK_OFFSET_MS", "0"))
SESSION_S = float(os.environ.get("FAULT_SESSION_S", "6"))
SLACK_S = float(os.environ.get("FAULT_INTENT_SLACK_S", "3"))


def wrong_clock() -> int:
    return time.time_ns() // 1_000_000 + OFFSET_MS


class QuickWorker(worker.Worker):
    """Notices the death of others sooner than it would in production."""

    def _app(self) -> SafeApp:
        parts = self.parts
        return create_app(
            app_id(parts.topics),
            parts.brokers,
            parts.data_dir / "tables",
            store=parts.store,
            max_request_bytes=worker.MAX_RECORD_BYTES,
            session_timeout_s=SESSION_S,
            heartbeat_s=0.5,
            commit_interval_s=0.2,
        )


async def run(state_file: Path) -> None:
    if OFFSET_MS:
        worker.now_ms = compose.now_ms = wrong_clock  # type: ignore[attr-defined]
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = load_settings()
    parts = compose.compose(settings, DataFolder(settings.data_dir).child_data(state_file.stem))
    parts = replace(parts, call=replace(parts.call, intent_slack_s=SLACK_S), ledger=replace(parts.ledger, take_again_s=SESSION_S + 2))

    def ready(port: int) -> None:
        write_state(state_file, port=port)

    try:
        await QuickWorker(parts).run(stop, on_ready=ready)
    finally:
        remove_state(state_file)


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1])))
