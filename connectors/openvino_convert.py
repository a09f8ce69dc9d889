"""Converts a sentence-transformers model for OpenVINO and compares the two before it is kept.

python -m inference_engine.connectors.openvino_convert MODEL_FOLDER TARGET_FOLDER
"""

import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np

from .embedder import SentenceTransformerEmbedder
from .openvino_embedder import FACTS, MODEL, TOKENIZER, OpenVinoEmbedder

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


def convert(folder: Path, target: Path) -> None:
    """Raises `ValueError` where the converted model makes other vectors."""
    # Its telemetry is on by default, and it has no switch in the interface that is used here: without the package it stays silent.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino
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
    made = openvino.convert_model(Whole(), example_input={"input_ids": ids, "attention_mask": mask})
    openvino.save_model(made, str(target / MODEL), compress_to_fp16=False)
    embedder.tokenizer.save(str(target / TOKENIZER))
    facts = {
        "own_dimension": embedder.dimension,
        "max_tokens": embedder.max_tokens,
        "unknown": embedder.model.tokenizer.unk_token_id,
        "pad": int(embedder.model.tokenizer.pad_token_id or 0),
    }
    (target / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    cosine = float(np.sum(OpenVinoEmbedder(target).embed(SAMPLES) * embedder.embed(SAMPLES), axis=1).min())
    if not cosine >= LEAST_COSINE:
        raise ValueError(f"the converted model makes other vectors: a cosine of {cosine:.4f} to the original's")


def main() -> None:
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    convert(Path(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
