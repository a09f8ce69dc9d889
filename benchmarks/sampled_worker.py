"""`inference-engine worker` under a sampler of its own CPU; started by cpu_by_stage.py in place of the command line.

Every millisecond of CPU the main thread looks where it stands, and books the CPU since its last look on the innermost frame
that belongs to a stage. The totals go to the file that BENCHMARK_SAMPLES names, at every SIGUSR1 and at the end.
"""

import json
import os
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType

INTERVAL_S = 0.001
STAGES = {
    "agents/ingest.py": "ingest", "agents/exact.py": "exact", "agents/embed.py": "embed", "agents/semantic.py": "semantic",
    "agents/shards.py": "semantic", "agents/coalesce.py": "coalesce", "agents/route.py": "route", "agents/call_agent.py": "call",
    "agents/call.py": "call", "agents/attempt.py": "call", "agents/ledger.py": "call", "agents/limits.py": "call",
    "connectors/fenced_log.py": "call", "agents/respond.py": "respond", "connectors/providers/transport.py": "call",
    "agents/safe/table.py": "table", "agents/packer.py": "packets out", "agents/safe/producer.py": "packets out",
    "agents/safe/delivery.py": "delivery", "agents/safe/consumer.py": "delivery",
}  # fmt: skip
"""Path within the package -> the name in the table."""
CLIENTS = {"aiokafka": "Kafka client", "aiohttp": "HTTP client", "asyncio": "event loop", "uvloop": "event loop"}


class Sampler:
    """Totals of the main thread's CPU by stage, in seconds."""

    def __init__(self, package: str) -> None:
        self._package = package
        self._stage_of: dict[str, str | None] = {}
        self.totals: defaultdict[str, float] = defaultdict(float)
        self._seen = time.thread_time()

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self._look)
        signal.siginterrupt(signal.SIGPROF, False)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)

    def _look(self, _number: int, frame: FrameType | None) -> None:
        now = time.thread_time()
        spent, self._seen = now - self._seen, now
        self.totals[self._stage(frame)] += spent

    def _stage(self, frame: FrameType | None) -> str:
        client = ""
        while frame is not None:
            stage = self._of_file(frame.f_code.co_filename)
            if stage is not None and stage not in CLIENTS.values():
                return stage
            client = client or stage or ""
            frame = frame.f_back
        return client or "event loop"

    def _of_file(self, path: str) -> str | None:
        if path not in self._stage_of:
            self._stage_of[path] = self._classify(path)
        return self._stage_of[path]

    def _classify(self, path: str) -> str | None:
        for end, stage in STAGES.items():
            if path.endswith(end) and self._package in path:
                return stage
        parts = Path(path).parts
        return next((name for part, name in CLIENTS.items() if part in parts), None)

    def write(self, target: Path) -> None:
        process = time.process_time()
        data = {"main": dict(self.totals), "main_s": time.thread_time(), "process_s": process}
        target.with_suffix(".new").write_text(json.dumps(data))
        target.with_suffix(".new").replace(target)


def main() -> None:
    import inference_engine
    from inference_engine.cli.main import main as command_line

    target = Path(os.environ["BENCHMARK_SAMPLES"])
    if sys.argv[1:2] != ["worker"]:
        command_line()
        return
    # The rooms are links: their files may be seen under the package or beside it.
    root = Path(inference_engine.__file__).resolve().parent
    sampler = Sampler(str(root.parents[1]))
    signal.signal(signal.SIGUSR1, lambda *_: sampler.write(target))
    sampler.start()
    command_line()


if __name__ == "__main__":
    main()
