"""A batch job with confluent-kafka: 20 requests to `requests`, their answers from `responses`.

    KAFKA_BROKERS=host:9092 python examples/produce_consume_confluent.py

Without KAFKA_BROKERS it uses the engine on this machine, and starts it where none runs.
"""

import json
import sys
import time
import uuid

from brokers import REQUESTS, RESPONSES, bootstrap_servers
from confluent_kafka import Consumer, KafkaError, Message, Producer

JOB = f"confluent-{uuid.uuid4().hex[:8]}"


def request(number: int) -> dict[str, object]:
    """One line in the form of an OpenAI batch file; `engine` is optional."""
    return {
        "custom_id": f"row-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "auto",
            "messages": [{"role": "user", "content": f"Name a song about the year {1960 + number}."}],
            "max_tokens": 60,
        },
        "engine": {"job": JOB, "user_id": "example", "feature_name": "confluent"},
    }


def produce(servers: str) -> None:
    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            sys.exit(f"Kafka did not take a request: {error}")

    producer = Producer({"bootstrap.servers": servers, "acks": "all", "enable.idempotence": True})
    for number in range(20):
        producer.produce(REQUESTS, json.dumps(request(number)), key=f"{JOB}/row-{number}", on_delivery=delivered)
    if producer.flush(30):
        sys.exit("Kafka did not take all requests within 30 s")


def consume(servers: str) -> None:
    # A group of its own, from the beginning: answers that came before the consumer are read, too.
    consumer = Consumer({"bootstrap.servers": servers, "group.id": JOB, "auto.offset.reset": "earliest"})
    consumer.subscribe([RESPONSES])
    waiting = {f"row-{n}" for n in range(20)}
    deadline = time.monotonic() + 120
    while waiting and time.monotonic() < deadline:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error():
            sys.exit(f"Kafka did not give the responses: {message.error()}")
        answer = json.loads(message.value() or b"")
        if answer["engine"]["job"] != JOB or answer["custom_id"] not in waiting:
            continue  # another job's, or one that was delivered twice
        waiting.discard(answer["custom_id"])
        text = answer["error"] or answer["response"]["body"]["choices"][0]["message"]["content"]
        print(f"{answer['custom_id']:>7}  ${answer['engine']['cost_usd']}  {answer['engine']['model_used']}  {text!s:.60}")
    consumer.close()
    if waiting:
        sys.exit(f"{len(waiting)} answers did not come within 120 s")


def main() -> None:
    servers = bootstrap_servers()
    produce(servers)
    consume(servers)
    print(f"20 answers; costs: inference-engine sql \"SELECT sum(base_cost) FROM cost_events WHERE job = '{JOB}'\"")


if __name__ == "__main__":
    main()
