"""Books what an embeddings endpoint bills: one row per text, under the request that it was embedded for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..pipeline.respond import embedding_event
from ..schemas.requests import Waiter
from .outbox import Outbox
from .packer import Now


@dataclass(frozen=True, slots=True)
class EmbeddingPrice:
    """What an endpoint's model costs."""

    model: str
    pico_per_token: int


class EmbeddingBook:
    """A row has an id of its own payment: the producer's repetitions count once, a text that is embedded again after a crash twice."""

    def __init__(self, price: EmbeddingPrice, outbox: Outbox, now: Now, new_id: Callable[[], str]) -> None:
        self._price = price
        self._out = outbox
        self._now = now
        self._new_id = new_id

    async def __call__(self, billed: Sequence[tuple[Waiter, int]]) -> None:
        """Whose texts of one call, and the tokens of each; returns when their rows are durable."""
        sends, call, price = self._out.batch(), self._new_id(), self._price
        for i, (whose, tokens) in enumerate(billed):
            row = embedding_event(whose, f"emb_{call}_{i}", price.model, tokens, price.pico_per_token, self._now())
            sends.cost(row, whose.lane)
        await sends.settle()
