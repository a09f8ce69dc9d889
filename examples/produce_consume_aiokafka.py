"""A batch job with aiokafka: 20 requests to `requests`, their answers from `responses`.

    KAFKA_BROKERS=host:9092 python examples/produce_consume_aiokafka.py

Without KAFKA_BROKERS it uses the engine on this machine, and starts it where none runs.
"""

import asyncio
import json
import uuid

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from brokers import REQUESTS, RESPONSES, bootstrap_servers

JOB = f"aiokafka-{uuid.uuid4().hex[:8]}"


def request(number: int) -> dict[str, object]:
    """One line in the form of an OpenAI batch file; `engine` is optional."""
    return {
        "custom_id": f"row-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "auto", "messages": [{"role": "user", "content": f"Name a use of the number {number}."}], "max_tokens": 60},
        "engine": {"job": JOB, "user_id": "example", "feature_name": "aiokafka"},
    }


async def produce(servers: str) -> None:
    async with AIOKafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True) as producer:
        # All 20 at once; each await returns when Kafka has the record for good.
        sends = [await producer.send(REQUESTS, json.dumps(request(n)).encode(), key=f"{JOB}/row-{n}".encode()) for n in range(20)]
        await asyncio.gather(*sends)


async def consume(servers: str) -> None:
    # A group of its own, from the beginning: answers that came before the consumer are read, too.
    consumer = AIOKafkaConsumer(RESPONSES, bootstrap_servers=servers, group_id=JOB, auto_offset_reset="earliest")
    waiting = {f"row-{n}" for n in range(20)}
    async with consumer:
        async for record in consumer:
            answer = json.loads(record.value)
            if answer["engine"]["job"] != JOB or answer["custom_id"] not in waiting:
                continue  # another job's, or one that was delivered twice
            waiting.discard(answer["custom_id"])
            text = answer["error"] or answer["response"]["body"]["choices"][0]["message"]["content"]
            print(f"{answer['custom_id']:>7}  ${answer['engine']['cost_usd']}  {answer['engine']['model_used']}  {text!s:.60}")
            if not waiting:
                return


async def main() -> None:
    servers = bootstrap_servers()
    await produce(servers)
    await asyncio.wait_for(consume(servers), timeout=120)
    print(f"20 answers; costs: inference-engine sql \"SELECT sum(base_cost) FROM cost_events WHERE job = '{JOB}'\"")


if __name__ == "__main__":
    asyncio.run(main())
