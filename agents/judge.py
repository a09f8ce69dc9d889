"""The judge of answers that is used by default: free text is embedded, and compared by its cosine."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from ..pipeline.judge import by_value
from ..pipeline.ports import Case, Vector
from ..schemas.answers import Told
from ..schemas.requests import Waiter
from .embed import EmbedQueue

KEPT = 4096
"""Vectors of answers that are kept: 6 MB. An answer that is near many prompts is compared many times."""


class EmbeddingJudge:
    """Implements `pipeline.ports.Judge` with the embedder of the prompts, after everything else that waits for it."""

    at_once = 1

    def __init__(self, queue: EmbedQueue, similarity: float) -> None:
        """`similarity`: cosine from which two answers say the same."""
        self._queue = queue
        self._similarity = similarity
        self._vectors: OrderedDict[str, Vector | None] = OrderedDict()

    async def agree(self, own: Told, others: Sequence[Told], case: Case) -> list[bool | None]:
        values = [by_value(own, other) for other in others]
        open_ = [other for other, value in zip(others, values, strict=True) if value is None]
        if open_:
            found = await asyncio.gather(self._vector(own, case.whose), *(self._vector(other, case.whose) for other in open_))
            mine, theirs = found[0], iter(found[1:])
            values = [self._close(mine, next(theirs)) if value is None else value for value in values]
        return values

    def _close(self, one: Vector | None, other: Vector | None) -> bool | None:
        # An answer of which the model sees only a part may differ in the rest.
        return None if one is None or other is None else float(one @ other) >= self._similarity

    async def _vector(self, told: Told, whose: Waiter) -> Vector | None:
        if told.digest in self._vectors:
            self._vectors.move_to_end(told.digest)
            return self._vectors[told.digest]
        vector = await self._queue.embed_aside(told.text, whose)
        self._vectors[told.digest] = vector
        if len(self._vectors) > KEPT:
            self._vectors.popitem(last=False)
        return vector
