"""The `corrections` topic: answers that were reported wrong, read whole by every worker."""

from collections.abc import Callable, Sequence

import structlog
from pydantic import ValidationError

from ..schemas.answers import AnswerRecord
from ..schemas.corrections import Correction
from .tail import Tail

log = structlog.get_logger(__name__)


class Corrections:
    """Which answers are not given any more."""

    def __init__(self, brokers: Sequence[str], topic: str) -> None:
        self._tail = Tail(brokers, topic, lambda _partition, _offset, value: self.apply(value))
        self._until: dict[str, int] = {}
        self.listeners: list[Callable[[Correction], None]] = []
        """Called for each correction, those of earlier times too."""

    @property
    def known(self) -> int:
        """Answers that are not given any more."""
        return len(self._until)

    def revoked(self, record: AnswerRecord) -> bool:
        return self.made_before(record.source.fingerprint, record.created_ms)

    def made_before(self, fingerprint: str, created_ms: int) -> bool:
        """Was an answer to this fingerprint reported wrong after it was made at this time?"""
        until_ms = self._until.get(fingerprint)
        return until_ms is not None and created_ms <= until_ms

    async def start(self, deadline_s: float = 30.0) -> None:
        """Returns when all corrections written so far are known. Raises `Unavailable`."""
        await self._tail.start()
        await self._tail.follow_all()
        await self._tail.caught_up(deadline_s)

    def apply(self, value: bytes | None) -> None:
        """Takes one correction; what is not understood is told, not obeyed."""
        if value is None:
            return
        try:
            correction = Correction.model_validate_json(value)
        except ValidationError:
            log.error("a correction that this version does not understand was ignored: the answer may be given again",
                      value=value[:200].decode(errors="replace"))  # fmt: skip
            return
        self._until[correction.fingerprint] = max(correction.at_ms, self._until.get(correction.fingerprint, 0))
        for listener in self.listeners:
            listener(correction)

    async def stop(self) -> None:
        await self._tail.stop()
