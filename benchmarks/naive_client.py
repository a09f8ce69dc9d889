"""What people write today: the official SDK, asyncio and a semaphore. Prints one JSON line; started by throughput.py.

python benchmarks/naive_client.py REQUESTS.jsonl ANSWERS.jsonl --base-url http://127.0.0.1:9999/v1
"""

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI, OpenAIError


async def ask_all(requests: list[dict[str, Any]], base_url: str, in_flight: int) -> list[dict[str, Any]]:
    """One line per request: its answer, or what the SDK said where it gave up."""
    semaphore = asyncio.Semaphore(in_flight)
    async with AsyncOpenAI(api_key="x", base_url=base_url, max_retries=0) as client:

        async def ask(request: dict[str, Any]) -> dict[str, Any]:
            async with semaphore:
                try:
                    reply = await client.chat.completions.create(**request["body"])
                except OpenAIError as error:
                    return {"custom_id": request["custom_id"], "error": repr(error)}
            return {"custom_id": request["custom_id"], "body": reply.model_dump()}

        return await asyncio.gather(*(ask(request) for request in requests))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--in-flight", type=int, default=256)
    given = parser.parse_args()
    requests = [json.loads(line) for line in given.source.read_text("utf-8").splitlines()]
    began = time.perf_counter()
    lines = asyncio.run(ask_all(requests, given.base_url, given.in_flight))
    given.target.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    answered = sum("body" in line for line in lines)
    print(json.dumps({"answered": answered, "seconds": time.perf_counter() - began, "cpu_s": time.process_time()}))


if __name__ == "__main__":
    main()
