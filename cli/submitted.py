"""What `submit` leaves for `collect`: how many requests a job has, where its responses begin, and its rows that could not be sent."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import orjson

from ..connectors.state_file import write_atomically


@dataclass(frozen=True, slots=True)
class Submission:
    tenant: str
    job: str
    requests: int
    """Distinct custom_ids that Kafka acknowledged, of all submissions of the job from this machine."""
    cluster: str
    offsets: dict[str, int]
    """Of the responses topic, before the first request was sent."""


@dataclass(frozen=True, slots=True)
class Submissions:
    """One file per job in the data folder."""

    folder: Path

    def _file(self, tenant: str, job: str, suffix: str) -> Path:
        # Names of jobs may hold anything: only their digest names a file.
        name = blake2b(f"{len(tenant)}:{tenant}{job}".encode(), digest_size=12).hexdigest()
        return self.folder / "jobs" / f"{name}{suffix}"

    def errors_file(self, tenant: str, job: str) -> Path:
        """Error lines of rows that were not sent, as they go into the answers."""
        return self._file(tenant, job, ".errors.jsonl")

    def ids_file(self, tenant: str, job: str) -> Path:
        """What was sent under which custom_id, for later submissions of the same job."""
        return self._file(tenant, job, ".ids.db")

    def save(self, submission: Submission) -> None:
        write_atomically(self._file(submission.tenant, submission.job, ".json"), orjson.dumps(asdict(submission)).decode())

    def load(self, tenant: str, job: str) -> Submission | None:
        try:
            return Submission(**orjson.loads(self._file(tenant, job, ".json").read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def errors(self, tenant: str, job: str) -> Iterator[bytes]:
        path = self.errors_file(tenant, job)
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    yield line.rstrip(b"\n")
