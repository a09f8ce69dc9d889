"""Converts a sentence-transformers model for OpenVINO or ONNX Runtime and compares the two before it is kept.

python -m inference_engine.connectors.convert_model BACKEND MODEL_FOLDER TARGET_FOLDER
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import onnx_embedder, openvino_embedder
from .converted_model import FACTS, TOKENIZER
from .embedder import CONVERTED, SentenceTransformerEmbedder

if TYPE_CHECKING:
    import torch

SAMPLES = [
    "Where is my card?",
    "where is my card",
    "Can you tell me whether the transfer of 20 pounds that I made on Tuesday has arrived, and if not, what I should do about it?",
    "C++",
    "",
    "one two three four five six seven eight nine ten " * 12,
]
LEAST_COSINE = 0.999
"""To torch's vector of the same text. Questions that mean the same differ by a hundred times as much."""


def convert(backend: str, folder: Path, target: Path) -> None:
    """Raises `ValueError` where the converted model makes other vectors."""
    onnx_embedder.silence()
    import torch

    embedder = SentenceTransformerEmbedder(folder)

    class Whole(torch.nn.Module):
        """Transformer, pooling and whatever else the model has, from tensors to a tensor."""

        def __init__(self) -> None:
            super().__init__()
            self.model = embedder.model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.model({"input_ids": input_ids, "attention_mask": attention_mask})["sentence_embedding"]
            return made

    ids = torch.full((2, 8), embedder.model.tokenizer.pad_token_id or 0, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    export = {"openvino": to_openvino, "onnx": to_onnx}[backend]
    export(Whole().eval(), {"input_ids": ids, "attention_mask": mask}, target)
    embedder.tokenizer.save(str(target / TOKENIZER))
    facts = {
        "own_dimension": embedder.dimension,
        "max_tokens": embedder.max_tokens,
        "unknown": embedder.model.tokenizer.unk_token_id,
        "pad": int(embedder.model.tokenizer.pad_token_id or 0),
    }
    (target / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    converted, true = CONVERTED[backend](target), embedder.embed(SAMPLES)
    # Also each text alone: an exporter may take a batch's size for a constant.
    for made in (converted.embed(SAMPLES), np.concatenate([converted.embed([text]) for text in SAMPLES])):
        cosine = float(np.sum(made * true, axis=1).min())
        if not cosine >= LEAST_COSINE:
            raise ValueError(f"the converted model makes other vectors: a cosine of {cosine:.4f} to the original's")


def to_openvino(model: "torch.nn.Module", example: dict[str, "torch.Tensor"], target: Path) -> None:
    # Its telemetry is on by default, and it has no switch in the interface that is used here: without the package it stays silent.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    made = openvino.convert_model(model, example_input=example)
    openvino.save_model(made, str(target / openvino_embedder.MODEL), compress_to_fp16=False)


def to_onnx(model: "torch.nn.Module", example: dict[str, "torch.Tensor"], target: Path) -> None:
    import torch

    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        model,
        kwargs=example,
        f=str(target / onnx_embedder.MODEL),
        input_names=list(example),
        dynamic_shapes=dict.fromkeys(example, any_size),
        dynamo=True,
    )


def main() -> None:
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    backend, folder, target = sys.argv[1:]
    convert(backend, Path(folder), Path(target))


if __name__ == "__main__":
    main()
