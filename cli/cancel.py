"""`cancel`: tells every worker to stop paying for a job; what has no answer yet is answered with the error `cancelled`."""

from ..connectors.costs_access import CostsLocation, open_costs
from ..connectors.kafka_bulk import write_record
from ..pipeline.errors import EngineError
from ..schemas.controls import Cancel
from ..schemas.topics import Topics
from .accounts import job_summary
from .submitted import Submissions


def cancel_job(tenant: str, job: str, brokers: str, topics: Topics, now_ms: int) -> None:
    """Returns when Kafka has acknowledged it. Raises `ConfigError` where there is no such topic, `Unavailable`."""
    cancel = Cancel(tenant=tenant, job=job, at_ms=now_ms)
    write_record(brokers, topics.controls, cancel.key, cancel.model_dump_json().encode())


def is_known(tenant: str, job: str, submissions: Submissions, costs: CostsLocation) -> bool:
    """Was it submitted from this machine, or has any request of it a cost? Where the costs can't be asked, it counts as known."""
    if submissions.load(tenant, job) is not None:
        return True
    try:
        with open_costs(costs) as reader:
            return job_summary(reader, job, tenant=tenant).requests > 0
    except EngineError as error:
        return error.code != "no_costs"
