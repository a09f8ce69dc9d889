"""The same models as by torch, run by OpenVINO: two to three times the texts per core, and a start without loading torch.

A model is converted once per user, in a process of its own (`openvino_convert`), into the user's cache. On processors that have
bfloat16 OpenVINO computes in it: cosines to torch's vectors of 0.9999 and more (docs/decisions/embedder.md).
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
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..pipeline.embed import PASS_TOKENS
from ..pipeline.errors import Unavailable
from .file_lock import held
from .token_embedder import Ids, TokenEmbedder

if TYPE_CHECKING:
    from openvino import CompiledModel

PADDED_TOKENS = 1024
CONVERT_S = 600.0
"""A conversion takes 10 s, a minute on a machine that has other things to do."""
KEPT = 2
"""Converted models in the cache, 90 MB each for MiniLM."""
_FIRST_PASS = threading.Lock()
"""Held for a model's first pass. OpenVINO's bindings (2026.4, by pybind11) look up NumPy when an array is first handed over; two threads
that do so at once wait for each other for ever, one with the interpreter's lock, one with that of the look-up."""
MODEL, FACTS, TOKENIZER = "model.xml", "facts.json", "tokenizer.json"


class OpenVinoEmbedder(TokenEmbedder):
    """A converted model. Safe to call from any thread; each thread of `threads` computes on its own, on one core."""

    def __init__(self, converted: Path, *, dimension: int | None = None, threads: int | None = None) -> None:
        """`converted`: see `converted_model`. `threads`: None for all cores. Raises `ConfigError` for an impossible dimension."""
        from tokenizers import Tokenizer

        facts = json.loads((converted / FACTS).read_text("utf-8"))
        streams = threads or os.cpu_count() or 1
        self._compiled = compiled(converted / MODEL, streams)
        self._mine = threading.local()
        super().__init__(
            Tokenizer.from_file(str(converted / TOKENIZER)),
            self._pass,
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

    def _pass(self, ids: Ids, mask: Ids) -> NDArray[np.floating]:
        request = getattr(self._mine, "request", None)
        if request is None:
            request = self._mine.request = self._compiled.create_infer_request()
        made: NDArray[np.floating] = request.infer({"input_ids": ids, "attention_mask": mask})[0]
        return made


def compiled(model: Path, streams: int) -> "CompiledModel":
    """Each stream computes on one thread: threads that share one pass wait for each other, the longer the busier the cores are."""
    import openvino

    # Not bound to a core each: whatever else runs there would hold up a stream while the other core is free.
    threads = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams, "ENABLE_CPU_PINNING": False}
    return openvino.Core().compile_model(str(model), "CPU", threads)


def has_openvino() -> bool:
    """Imports nothing."""
    return find_spec("openvino") is not None


def converted_model(folder: Path, cache_dir: Path) -> Path:
    """The folder that `OpenVinoEmbedder` loads, made from a sentence-transformers model where it isn't there yet; then it takes a while.

    Raises `Unavailable` where the model can't be converted: torch still runs it.
    """
    target = cache_dir / "embedders" / _key(folder)
    if not target.is_dir():
        with held(cache_dir / "embedders.lock"):
            if not target.is_dir():
                _convert(folder, target)
    os.utime(target)
    return target


def _key(folder: Path) -> str:
    """Changes with the model's files and with whatever converts and reads them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = [f"{path.relative_to(folder)}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files]
    facts += [str(folder), *(version(name) for name in ("openvino", "sentence-transformers"))]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def _convert(folder: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=target.parent))
    command = [sys.executable, "-m", "inference_engine.connectors.openvino_convert", str(folder), str(part)]
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
