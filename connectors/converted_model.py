"""What OpenVINO and ONNX Runtime share: a model converted once per user, and the embedder that runs it without loading torch.

The conversion is a process of its own (`convert_model`), needs torch, and compares the two before it keeps anything.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar

from ..pipeline.embed import PASS_TOKENS
from ..pipeline.errors import Unavailable
from .file_lock import held
from .token_embedder import Forward, TokenEmbedder

PADDED_TOKENS = 1024
CONVERT_S = 600.0
"""A conversion takes 10 s, a minute on a machine that has other things to do."""
KEPT = 4
"""Converted models in the cache, 90 MB each for MiniLM: two models, each by both back ends."""
FACTS, TOKENIZER = "facts.json", "tokenizer.json"
_FIRST_PASS = threading.Lock()
"""Held for a model's first pass. OpenVINO's bindings (2026.4, by pybind11) look up NumPy when an array is first handed over; two threads
that do so at once wait for each other for ever, one with the interpreter's lock, one with that of the look-up. ONNX Runtime's bindings are
by pybind11, too."""


class ConvertedEmbedder(TokenEmbedder):
    """A converted model. Safe to call from any thread; each of `streams` threads computes on its own, on one core: threads that share one
    pass wait for each other, the longer the busier the cores are."""

    backend: ClassVar[str]
    """As EMBEDDING_BACKEND names it."""
    runtime: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    """What the conversion and the runtime need beside the extra [embed]."""
    extras: ClassVar[str]
    """That install it."""

    def __init__(self, converted: Path, forward: Forward, *, dimension: int | None, streams: int) -> None:
        """`converted`: see `converted_model`. `forward` may be called by `streams` threads at once. Raises `ConfigError` for an impossible
        dimension."""
        from tokenizers import Tokenizer

        facts = json.loads((converted / FACTS).read_text("utf-8"))
        super().__init__(
            Tokenizer.from_file(str(converted / TOKENIZER)),
            forward,
            own_dimension=facts["own_dimension"],
            dimension=dimension,
            max_tokens=facts["max_tokens"],
            unknown=facts["unknown"],
            pad=facts["pad"],
            padded_tokens=PADDED_TOKENS,
            pass_tokens=PASS_TOKENS,
            parallel=streams,
        )
        with _FIRST_PASS:
            self.embed(["first"])

    @classmethod
    def missing(cls) -> list[str]:
        """Those of its packages that are not installed. Imports none."""
        return [name for name in cls.packages if not _installed(name)]


def all_cores() -> int:
    return os.cpu_count() or 1


def converted_model(folder: Path, cache_dir: Path, kind: type[ConvertedEmbedder]) -> Path:
    """The folder that `kind` loads, made from a sentence-transformers model where it isn't there yet; then it takes a while.

    Raises `Unavailable` where the model can't be converted: torch still runs it.
    """
    target = cache_dir / "embedders" / f"{kind.backend}-{_key(folder, kind)}"
    if not target.is_dir():
        with held(cache_dir / "embedders.lock"):
            if not target.is_dir():
                _convert(folder, target, kind)
    os.utime(target)
    return target


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _key(folder: Path, kind: type[ConvertedEmbedder]) -> str:
    """Changes with the model's files and with whatever converts and reads them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = [f"{path.relative_to(folder)}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files]
    facts += [str(folder), *(version(name) for name in (*kind.packages, "sentence-transformers"))]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def _convert(folder: Path, target: Path, kind: type[ConvertedEmbedder]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=target.parent))
    command = [sys.executable, "-m", "inference_engine.connectors.convert_model", kind.backend, str(folder), str(part)]
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=CONVERT_S, check=False)
        if done.returncode:
            last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise Unavailable(f"the model in {folder} can't be converted: {' '.join(last) or f'exit code {done.returncode}'}")
        part.rename(target)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the model in {folder} was not converted within {CONVERT_S:.0f} s") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for old in _oldest_first(target.parent)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _oldest_first(folder: Path) -> Sequence[Path]:
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.stat().st_mtime)
