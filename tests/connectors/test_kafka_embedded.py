"""The embedded Kafka: started, adopted, stopped, and honest about what went wrong."""

from confluent_kafka.admin import AdminClient


def test_the_session_broker_answers_the_protocol(kafka: str) -> None:
    assert AdminClient({"bootstrap.servers": kafka}).list_topics(timeout=10).brokers
