"""A broker of one's own behind a forwarder: killed, started again, cut off."""

import tempfile
from pathlib import Path

from inference_engine.connectors.kafka_embedded import EmbeddedKafka, find_broker

from .proxy import Proxy, Weather


class Broker:
    """`with Broker(folder) as broker:` is a real Kafka whose clients all go through `broker.proxy`."""

    def __init__(self, folder: Path | None = None) -> None:
        self._made = tempfile.TemporaryDirectory(prefix="faults-kafka-") if folder is None else None
        self.folder = folder or Path(self._made.name if self._made else "")
        self.proxy = Proxy()

    def __enter__(self) -> "Broker":
        self.proxy.__enter__()
        self._kafka = EmbeddedKafka(fast_jit=True, heap=("128m", "512m"), advertised_port=self.proxy.port)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.weather(Weather())
        self._kafka.stop(self.folder, timeout_s=20)
        self.proxy.__exit__()
        if self._made is not None:
            self._made.cleanup()

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.proxy.port}"

    def start(self) -> None:
        """Returns once it answers."""
        self.proxy.to(self._kafka.start(self.folder).port)

    def kill(self) -> None:
        """As kill -9."""
        for process in find_broker(self.folder):
            process.kill()
            process.wait(20)
