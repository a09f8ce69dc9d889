"""Embeddings from any endpoint that speaks OpenAI's `/v1/embeddings`: OpenAI itself, vLLM, Ollama, text-embeddings-inference."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..pipeline.embed import reduce_dimension, unit_rows
from ..pipeline.errors import ConfigError, EngineError, Rejected, Unavailable
from ..pipeline.ports import Embedded, Vectors

if TYPE_CHECKING:
    from openai import OpenAIError

_PARALLEL = 4
"""Calls at once: an endpoint is waited for, not computed."""
_MAX_INPUTS = 512
"""Texts in one call; OpenAI takes 2,048 and 300,000 tokens, others less."""
_MARKS = 2
"""Tokens that models like BERT put around a text."""
CAREFUL = 256
"""Tokens that any embedding model sees; all-MiniLM-L6-v2 was made for no more."""


class EndpointEmbedder:
    """An embeddings endpoint behind the `Embedder` port. Blocking; safe to call from several threads.

    Raises `Unavailable` where asking again may help, `ConfigError` where key, address, model or dimension is wrong.
    """

    def __init__(
        self,
        model: str,
        dimension: int,
        *,
        base_url: str,
        api_key: str,
        max_tokens: int = CAREFUL,
        send_dimension: bool = False,
        timeout: float = 30.0,
    ) -> None:
        """`max_tokens` is the model's limit, by which texts are left out here: Ollama and text-embeddings-inference may cut
        what is longer and say nothing, and texts that are equal up to there would have cosine 1. `send_dimension` asks the
        endpoint for the shorter vectors (OpenAI's models of the third generation); otherwise longer vectors are truncated here.
        `timeout` in seconds is for one call.
        """
        # Imported here: it takes a second, and only those who use an endpoint wait for it.
        from openai import OpenAI

        # No retries of the SDK's own: who calls decides whether a late vector is still worth anything.
        self._client = OpenAI(base_url=base_url, api_key=api_key, timeout=timeout, max_retries=0)
        self._base_url = base_url
        self._model = model
        self.dimension = dimension
        self.max_tokens = max_tokens
        self.parallel = _PARALLEL
        self._send_dimension = send_dimension

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """UTF-8 bytes and two marks: the model's tokenizer is not known here, and no text has more tokens than bytes."""
        return [len(text.encode("utf-8", "surrogatepass")) + _MARKS for text in texts]

    def embed(self, texts: Sequence[str]) -> Vectors:
        return self._embed([text.encode("utf-8", "replace")[: self.max_tokens - _MARKS].decode("utf-8", "ignore") for text in texts])[0]

    def embed_whole(self, texts: Sequence[str]) -> Embedded:
        counts = self.count_tokens(texts)
        # Endpoints refuse an empty input, and JSON can't carry a lone surrogate.
        whole = np.array([t != "" and n <= self.max_tokens and _is_utf8(t) for n, t in zip(counts, texts, strict=True)], dtype=np.bool_)
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        seen = np.flatnonzero(whole)
        billed = 0
        if len(seen):
            vectors[seen], billed = self._embed([texts[int(i)] for i in seen])
        return Embedded(vectors=vectors, whole=whole, billed_tokens=billed)

    def close(self) -> None:
        self._client.close()

    def _embed(self, texts: Sequence[str]) -> tuple[Vectors, int]:
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        billed = 0
        for start in range(0, len(texts), _MAX_INPUTS):
            part, tokens = self._ask([text or " " for text in texts[start : start + _MAX_INPUTS]])
            rows[start : start + len(part)] = part
            billed += tokens
        return rows, billed

    def _ask(self, texts: list[str]) -> tuple[Vectors, int]:
        from openai import OpenAIError, omit

        try:
            reply = self._client.embeddings.create(
                model=self._model,
                input=texts,
                dimensions=self.dimension if self._send_dimension else omit,
                encoding_format="float",
            )
        except OpenAIError as error:
            raise self._named(error) from error
        if sorted(e.index for e in reply.data) != list(range(len(texts))):
            raise Unavailable(
                f"{self._base_url} returned {len(reply.data)} vectors for {len(texts)} texts; none is used", code="embedding_count"
            )
        rows = np.array([e.embedding for e in sorted(reply.data, key=lambda e: e.index)], dtype=np.float32)
        return self._fit(rows), reply.usage.total_tokens

    def _fit(self, rows: Vectors) -> Vectors:
        if rows.ndim != 2 or rows.shape[1] < self.dimension:
            raise ConfigError(
                f"model {self._model!r} of {self._base_url} makes vectors of {rows.shape[-1]} dimensions, fewer than EMBEDDING_DIMENSION = "
                f"{self.dimension}; lower it to {rows.shape[-1]}"
            )
        return unit_rows(rows) if rows.shape[1] == self.dimension else reduce_dimension(rows, self.dimension)

    def _named(self, error: "OpenAIError") -> EngineError:
        from openai import APIConnectionError, APIStatusError

        where = f"the embeddings endpoint {self._base_url}"
        if isinstance(error, APIConnectionError):
            return Unavailable(
                f"{where} can't be reached ({error}); prompts go on without the semantic cache", code="embedding_unreachable"
            )
        if not isinstance(error, APIStatusError):
            return Unavailable(f"{where} gave no readable answer ({error}); prompts go on without the semantic cache")
        if error.status_code == 429 or error.status_code >= 500:
            return Unavailable(
                f"{where} answered {error.status_code}; try again later",
                retry_after=_retry_after(error.response.headers.get("retry-after")),
            )
        if error.status_code in (401, 403, 404):
            return ConfigError(f"{where} answered {error.status_code} for model {self._model!r}: check its address, key and model name")
        return Rejected(f"{where} refused the texts ({error.status_code}: {error.message})", code="embedding_refused")


def _is_utf8(text: str) -> bool:
    return text.isascii() or text == text.encode("utf-8", "replace").decode("utf-8")


def _retry_after(header: str | None) -> float | None:
    """Seconds; dates are left to the caller's own backoff."""
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:
        return None
