"""`cancel`: tells every worker to stop paying for a job; what has no answer yet is answered with the error `cancelled`."""

from ..connectors.kafka_bulk import BulkConsumer, BulkProducer
from ..schemas.controls import Cancel
from ..schemas.topics import Topics

FLUSH_S = 30.0


def cancel_job(tenant: str, job: str, brokers: str, topics: Topics, now_ms: int) -> None:
    """Returns when Kafka has acknowledged it. Raises `ConfigError` where there is no such topic, `Unavailable`."""
    controls = BulkConsumer(brokers, topics.controls)
    producer = BulkProducer(brokers)
    try:
        controls.partitions()
        cancel = Cancel(tenant=tenant, job=job, at_ms=now_ms)
        producer.produce(topics.controls, cancel.key, cancel.model_dump_json().encode())
        producer.flush(FLUSH_S)
    finally:
        producer.close()
        controls.close()
