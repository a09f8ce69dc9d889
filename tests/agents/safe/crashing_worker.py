"""A worker process for the kill tests: copies topic `in` to `out` through a table, noting each id there.

Arguments: bootstrap address, prefix, data folder.
"""

import asyncio
import random
import signal
import sys
from pathlib import Path
from typing import Any

from inference_engine.agents.safe import DeadLetter, Delivered, consume, create_app, run_app


async def main(brokers: str, prefix: str, folder: str) -> None:
    app = create_app(f"{prefix}app", [brokers], Path(folder), session_timeout_s=6.0, heartbeat_s=0.3, commit_interval_s=0.2)
    table = app.safe_table("rows", partitions=4)

    async def copy(event: Delivered) -> None:
        key, value = event.key or b"", event.value or b""
        await asyncio.sleep(random.random() * 0.05)  # events finish out of order
        await table.write(event.partition, {key: value})
        await app.append(f"{prefix}out", key, value)

    async def never(event: Delivered, dead: DeadLetter) -> None:
        raise AssertionError(event)

    async def body(stream: Any) -> None:
        await consume(app, stream, copy, limit=32, name="copy", on_dead=never)

    app.agent(app.topic(f"{prefix}in"), name="copy")(body)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await run_app(app, stop=stop)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
