"""The same models as by torch, run by ONNX Runtime in float32: not quite twice the texts per core, and a start without loading torch."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..pipeline.errors import Unavailable
from .converted_model import ConvertedEmbedder, all_cores
from .token_embedder import Ids

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MODEL = "model.onnx"


class OnnxEmbedder(ConvertedEmbedder):
    """A model that was exported to ONNX."""

    backend, runtime, packages, extras = "onnx", "ONNX Runtime", ("onnx", "onnxruntime", "onnxscript"), "embed,onnx"

    def __init__(self, converted: Path, *, dimension: int | None = None, threads: int | None = None) -> None:
        """`threads`: None for all cores. Raises `ConfigError` for an impossible dimension, `Unavailable` where it can't be loaded."""
        self._session = session(converted / MODEL)
        super().__init__(converted, self._pass, dimension=dimension, streams=threads or all_cores())

    def _pass(self, ids: Ids, mask: Ids) -> NDArray[np.floating]:
        made: NDArray[np.floating] = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return made


def silence() -> None:
    """ONNX Runtime (from 1.29 on) sends what it runs, and a number for this machine, to its maker. It reads this once, when it is imported;
    its switch in the interface leaves the first event out."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def session(model: Path) -> "InferenceSession":
    """Each pass computes on the thread that asks for it, and any number of threads may ask at once.

    Raises `Unavailable`.
    """
    silence()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base of their own
        raise Unavailable(f"ONNX Runtime can't load {model}: {error}") from None
