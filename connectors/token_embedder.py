"""What embedders in this process share: tokens, what a model sees whole, micro-batches, unit vectors. The model itself is a function."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..pipeline.embed import plan_micro_batches, reduce_dimension, unit_rows
from ..pipeline.errors import ConfigError
from ..pipeline.ports import Embedded, Vectors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CHARS_PER_TOKEN = 64
"""A text with more characters than this per allowed token is taken as too long without being tokenised."""

Ids = NDArray[np.int64]
Forward = Callable[[Ids, Ids], NDArray[np.floating]]
"""(token ids, attention mask), both of shape (texts, tokens) -> embeddings of shape (texts, own dimension)."""


class TokenEmbedder:
    """A model behind its tokenizer. Safe to call from `parallel` threads at a time."""

    def __init__(
        self,
        tokenizer: "Tokenizer",
        forward: Forward,
        *,
        own_dimension: int,
        dimension: int | None,
        max_tokens: int,
        unknown: int | None,
        pad: int,
        padded_tokens: int,
        pass_tokens: int,
        parallel: int = 1,
    ) -> None:
        """`tokenizer` neither pads nor truncates, so that lengths are true. `own_dimension`: what `forward` makes; `dimension` below
        it truncates and normalises again. `unknown`, `pad`: token ids. `padded_tokens`, `pass_tokens`: see `plan_micro_batches`.
        `parallel`: how many threads may call `forward` at once.
        Raises `ConfigError`."""
        if dimension is not None and not 1 <= dimension <= own_dimension:
            raise ConfigError(
                f"EMBEDDING_DIMENSION is {dimension}, but this embedder makes 1 to {own_dimension} dimensions; set it within that"
            )
        self._tokenizer = tokenizer
        self._forward_pass = forward
        self._own_dimension = own_dimension
        self.dimension = dimension or own_dimension
        self.max_tokens = max_tokens
        self._unknown = unknown
        self._pad = pad
        self._padded_tokens = padded_tokens
        self._pass_tokens = pass_tokens
        self.parallel = parallel

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, with the model's special tokens. Very long texts are only estimated, never below `max_tokens` + 1."""
        return [len(ids) for ids in self._tokens(texts)]

    def embed(self, texts: Sequence[str]) -> Vectors:
        return self._forward([self._cut(ids) for ids in self._tokens(texts)])

    def embed_whole(self, texts: Sequence[str]) -> Embedded:
        tokens = self._tokens(texts)
        seen_whole = (len(ids) <= self.max_tokens and self._unknown not in ids for ids in tokens)
        whole = np.array([seen and is_text(text) for seen, text in zip(seen_whole, texts, strict=True)], dtype=np.bool_)
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        seen = np.flatnonzero(whole)
        if len(seen):
            vectors[seen] = self._forward([tokens[i] for i in seen])
        return Embedded(vectors=vectors, whole=whole)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        limit = self.max_tokens * _CHARS_PER_TOKEN
        # Tokenising megabytes only to learn that they are too long would hold up everybody else's texts.
        encoded = self._tokenizer.encode_batch_fast([_encodable(text[:limit]) for text in texts])
        tokens = [list(e.ids) for e in encoded]
        for ids, text in zip(tokens, texts, strict=True):
            if len(text) > limit and len(ids) <= self.max_tokens:
                ids[-1:-1] = [self._pad] * (self.max_tokens + 1 - len(ids))
        return tokens

    def _cut(self, ids: list[int]) -> list[int]:
        """As long as the model allows, with its closing token kept."""
        return ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]]

    def _forward(self, tokens: list[list[int]]) -> Vectors:
        out = np.zeros((len(tokens), self._own_dimension), dtype=np.float32)
        for batch in plan_micro_batches([len(ids) for ids in tokens], self._padded_tokens, self._pass_tokens):
            out[batch] = self._forward_pass(*padded([tokens[i] for i in batch], self._pad))
        return unit_rows(out) if self.dimension == self._own_dimension else reduce_dimension(out, self.dimension)


def padded(tokens: Sequence[Sequence[int]], pad: int) -> tuple[Ids, Ids]:
    """Token ids and attention mask, both of shape (texts, longest)."""
    width = max(len(ids) for ids in tokens)
    ids = np.full((len(tokens), width), pad, dtype=np.int64)
    mask = np.zeros((len(tokens), width), dtype=np.int64)
    for row, found in enumerate(tokens):
        ids[row, : len(found)] = found
        mask[row, : len(found)] = 1
    return ids, mask


def is_text(text: str) -> bool:
    """False for lone surrogates, which no UTF-8 can carry."""
    return text.isascii() or text == _encodable(text)


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
