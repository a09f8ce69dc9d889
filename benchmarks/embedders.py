"""What a request costs one core until it is decided, by what runs the embedder's model: torch, OpenVINO, ONNX Runtime.

The texts are questions of BANKING77, 64 at a time; each is embedded, searched among 10,000 and decided. One thread, its own CPU time: what
else the machine does is not counted. The back ends take turns, round after round; a row is the median of its rounds.

    python benchmarks/embedders.py [--backends torch openvino onnx] [--texts 512] [--rounds 5]

`onnx` needs the packages onnx, onnxscript and onnxruntime, which the engine does not: the model is exported by `torch.onnx` into a
temporary folder, as sentence-transformers' own back end would load it.
"""

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from semantic_cache import banking77
from semantic_parts import per_second, whole
from support import print_table, say

from inference_engine.connectors.embedder import SentenceTransformerEmbedder, load_embedder, packaged_model
from inference_engine.connectors.token_embedder import Ids, TokenEmbedder
from inference_engine.pipeline.embed import PASS_TOKENS
from inference_engine.pipeline.ports import Embedder, Vectors


def exported(torch_embedder: SentenceTransformerEmbedder, file: Path) -> TokenEmbedder:
    """The same tokenizer and batches, with the model in ONNX Runtime on one thread."""
    import onnxruntime
    import torch

    class Whole(torch.nn.Module):
        """Transformer and pooling, from tensors to a tensor."""

        def __init__(self) -> None:
            super().__init__()
            self.model = torch_embedder.model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.model({"input_ids": input_ids, "attention_mask": attention_mask})["sentence_embedding"]
            return made

    ids = torch.full((2, 8), 1000, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    shape = {0: torch.export.Dim("texts", min=1, max=4096), 1: torch.export.Dim("tokens", min=2, max=512)}
    torch.onnx.export(
        Whole().eval(), (ids, mask), str(file), input_names=["input_ids", "attention_mask"], dynamic_shapes=(shape, shape), dynamo=True
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session: Any = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def forward(ids: Ids, mask: Ids) -> Vectors:
        found: Vectors = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return found

    return TokenEmbedder(
        torch_embedder.tokenizer,
        forward,
        own_dimension=torch_embedder.dimension,
        dimension=None,
        max_tokens=torch_embedder.max_tokens,
        unknown=torch_embedder.model.tokenizer.unk_token_id,
        pad=int(torch_embedder.model.tokenizer.pad_token_id or 0),
        padded_tokens=1024,
        pass_tokens=PASS_TOKENS,
    )


def embed_all(embedder: Embedder, texts: Sequence[str]) -> int:
    return sum(len(embedder.embed(texts[i : i + 64])) for i in range(0, len(texts), 64))


def embedders(names: Sequence[str], folder: Path) -> dict[str, Embedder]:
    torch_embedder = SentenceTransformerEmbedder(threads=1)
    found: dict[str, Embedder] = {}
    for name in names:
        say(f"loading {name}")
        if name == "torch":
            found[name] = torch_embedder
        elif name == "openvino":
            found[name] = load_embedder(packaged_model(), threads=1, backend="openvino")
        else:
            found[name] = exported(torch_embedder, folder / "model.onnx")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["torch", "openvino"], choices=["torch", "openvino", "onnx"])
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    texts = [line.text for line in banking77()[: arguments.texts]]
    with tempfile.TemporaryDirectory(prefix="inference-engine-benchmark-") as folder:
        found = embedders(arguments.backends, Path(folder))
        vectors = {name: embedder.embed(texts) for name, embedder in found.items()}
        embed: dict[str, list[float]] = {name: [] for name in found}
        decide: dict[str, list[float]] = {name: [] for name in found}
        for number in range(arguments.rounds):
            say(f"round {number + 1}")
            for name, embedder in found.items():
                embed[name].append(per_second(partial(embed_all, embedder, texts)))
                decide[name].append(whole(embedder, texts))
    true = SentenceTransformerEmbedder(threads=1).embed(texts)
    rows = [
        [
            name,
            f"{median(embed[name]):.0f} ({min(embed[name]):.0f} to {max(embed[name]):.0f})",
            f"{median(decide[name]):.0f} ({min(decide[name]):.0f} to {max(decide[name]):.0f})",
            f"{1000 / median(decide[name]):.2f}",
            f"{float(np.sum(vectors[name] * true, axis=1).min()):.6f}",
        ]
        for name in found
    ]
    columns = ["back end", "embedded a second", "embedded, searched, decided", "ms of CPU", "least cosine to torch"]
    print_table("Texts a second of one core", columns, rows)


if __name__ == "__main__":
    main()
