"""Stands for `inference-engine worker` and `sink` in tests of the stack: says ready, waits for TERM. Run as a program."""

import os
import signal
import sys
from pathlib import Path

from inference_engine.connectors.state_file import write_state


def main(arguments: list[str]) -> int:
    role, option, state_file = arguments[:3]
    assert option == "--state-file"
    mode = os.environ.get(f"FAKE_{role.upper()}", "ready")
    print(f"{role} in mode {mode}, brokers {os.environ['KAFKA_BROKERS']}", flush=True)
    if mode == "dies":
        print("the model file is broken", flush=True)
        return 3
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if mode != "slow":
        write_state(Path(state_file), port=4242)
    while True:
        signal.sigwait({signal.SIGTERM})
        if mode != "stubborn":
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
