"""CPU of one provider call on our side: thin transports, the official SDKs, and the simulated provider in process.

python benchmarks/provider_calls.py [--calls 3000] [--in-flight 64]
"""

import argparse
import asyncio
import subprocess
import sys
import time

import uvloop

from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.connectors.providers.anthropic import AnthropicProvider
from inference_engine.connectors.providers.openai import OpenAIProvider
from inference_engine.connectors.providers.sdk import AnthropicSdkProvider, OpenAISdkProvider
from inference_engine.connectors.providers.simulated import SimulatedProvider
from inference_engine.pipeline.ports import Provider

MODEL = load_catalogue().get("sim-economy")


async def drive(provider: Provider, calls: int, in_flight: int) -> tuple[float, float]:
    """CPU seconds and seconds of this process."""
    numbers = iter(range(calls))

    async def worker() -> None:
        for i in numbers:
            body = {"messages": [{"role": "user", "content": f"How do I change my PIN, card {i}, please?"}], "max_tokens": 100}
            await provider.complete(MODEL, body, timeout=30, metadata={"attempt": f"attempt-{i}"})

    cpu, clock = time.process_time(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return time.process_time() - cpu, time.perf_counter() - clock


async def compare(url: str, calls: int, in_flight: int) -> None:
    """Prints one line per provider. The SDKs make a tenth of the calls."""
    print(f"python benchmarks/provider_calls.py --calls {calls} --in-flight {in_flight}")
    print(f"{'provider':16} {'CPU us/call':>12} {'calls/s':>9}")
    providers: list[tuple[str, Provider, int]] = [
        ("openai, thin", OpenAIProvider("sk-x", f"{url}/v1"), calls),
        ("openai, SDK", OpenAISdkProvider("sk-x", f"{url}/v1"), calls // 10),
        ("anthropic, thin", AnthropicProvider("sk-x", url), calls),
        ("anthropic, SDK", AnthropicSdkProvider("sk-x", url), calls // 10),
        ("simulated", SimulatedProvider(), calls),
    ]
    for name, provider, count in providers:
        await drive(provider, in_flight, in_flight)
        cpu, seconds = await drive(provider, count, in_flight)
        print(f"{name:16} {cpu / count * 1e6:12.0f} {count / seconds:9.0f}", flush=True)
        await provider.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--in-flight", type=int, default=64)
    given = parser.parse_args()
    command = [sys.executable, "-m", "inference_engine.connectors.simulated_server", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().split(" at ")[1].split()[0]
            uvloop.run(compare(url, given.calls, given.in_flight))
        finally:
            server.terminate()
            server.communicate()


if __name__ == "__main__":
    main()
