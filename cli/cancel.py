"""`cancel`: tells every worker to stop paying for a job; what has no answer yet is answered with the error `cancelled`."""

from ..connectors.kafka_bulk import write_record
from ..schemas.controls import Cancel
from ..schemas.topics import Topics


def cancel_job(tenant: str, job: str, brokers: str, topics: Topics, now_ms: int) -> None:
    """Returns when Kafka has acknowledged it. Raises `ConfigError` where there is no such topic, `Unavailable`."""
    cancel = Cancel(tenant=tenant, job=job, at_ms=now_ms)
    write_record(brokers, topics.controls, cancel.key, cancel.model_dump_json().encode())
