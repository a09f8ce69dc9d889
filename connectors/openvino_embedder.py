"""The same models as by torch, run by OpenVINO: two to three times the texts per core, and a start without loading torch.

On processors that have bfloat16 OpenVINO computes in it: cosines to torch's vectors of 0.9999 and more (docs/decisions/embedder.md).
"""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .converted_model import ConvertedEmbedder, all_cores
from .token_embedder import Ids

if TYPE_CHECKING:
    from openvino import CompiledModel

MODEL = "model.xml"
SHAPES = 256
"""Of batches, that stay compiled: OpenVINO keeps 5,000 unless told otherwise, half a gigabyte after 30,000 texts. So it is 4 % more CPU."""


class OpenVinoEmbedder(ConvertedEmbedder):
    """A model that was converted for OpenVINO."""

    backend, runtime, packages, extras = "openvino", "OpenVINO", ("openvino",), "embed"

    def __init__(self, converted: Path, *, dimension: int | None = None, threads: int | None = None) -> None:
        """`threads`: None for all cores. Raises `ConfigError` for an impossible dimension."""
        streams = threads or all_cores()
        self._compiled = compiled(converted / MODEL, streams)
        self._mine = threading.local()
        super().__init__(converted, self._pass, dimension=dimension, streams=streams)

    def _pass(self, ids: Ids, mask: Ids) -> NDArray[np.floating]:
        request = getattr(self._mine, "request", None)
        if request is None:
            request = self._mine.request = self._compiled.create_infer_request()
        made: NDArray[np.floating] = request.infer({"input_ids": ids, "attention_mask": mask})[0]
        return made


def compiled(model: Path, streams: int) -> "CompiledModel":
    """Each stream computes on one thread."""
    import openvino

    # Not bound to a core each: whatever else runs there would hold up a stream while the other core is free.
    options = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams, "ENABLE_CPU_PINNING": False, "CPU_RUNTIME_CACHE_CAPACITY": SHAPES}
    return openvino.Core().compile_model(str(model), "CPU", options)
