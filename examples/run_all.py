"""Runs every example on an engine of its own, in a folder that is thrown away. `make examples`, and CI."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
ENGINE = [sys.executable, "-m", "inference_engine.cli.main"]


def run(command: list[str], environ: dict[str, str]) -> None:
    print("$", " ".join(Path(part).name if os.sep in part else part for part in command), flush=True)
    subprocess.run(command, env=environ, check=True, timeout=300)


@contextlib.contextmanager
def gateway(environ: dict[str, str]) -> Iterator[str]:
    """The gateway on a free port; yields its address for OpenAI's client."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*ENGINE, "gateway", "--port", str(port)], env=environ)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"the gateway ended with {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    sys.exit("the gateway did not answer within 120 s")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="inference-engine-examples-") as folder:
        environ = {**os.environ, "INFERENCE_ENGINE_HOME": folder, "NO_PROXY": "127.0.0.1,localhost"}
        try:
            run([sys.executable, str(HERE / "make_support.py"), "--check"], environ)
            run([sys.executable, str(HERE / "produce_consume_aiokafka.py")], environ)
            run([sys.executable, str(HERE / "produce_consume_confluent.py")], environ)
            with gateway(environ) as url:
                run([sys.executable, str(HERE / "openai_client.py")], {**environ, "GATEWAY_URL": url})
            run([*ENGINE, "run", str(HERE / "support.jsonl"), "-o", str(Path(folder) / "answers.jsonl")], environ)
            run([*ENGINE, "sql", "SELECT user_id, sum(base_cost) FROM cost_events GROUP BY user_id ORDER BY 2 DESC LIMIT 5"], environ)
            run([*ENGINE, "report"], environ)
        finally:
            run([*ENGINE, "down"], environ)


if __name__ == "__main__":
    main()
