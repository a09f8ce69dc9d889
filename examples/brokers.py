"""Where the examples find Kafka."""

import os
import subprocess
import sys

_PREFIX = os.environ.get("KAFKA_TOPIC_PREFIX", "")
REQUESTS = f"{_PREFIX}requests"
RESPONSES = f"{_PREFIX}responses"


def bootstrap_servers() -> str:
    """KAFKA_BROKERS, or those of the engine on this machine: `inference-engine up` starts it, or finds it running."""
    given = os.environ.get("KAFKA_BROKERS")
    if given:
        return given
    up = subprocess.run([sys.executable, "-m", "inference_engine.cli.main", "up"], stdout=subprocess.PIPE, text=True, check=True)
    return up.stdout.strip().removeprefix("KAFKA_BROKERS=")
