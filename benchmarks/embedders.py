"""What a request costs one core until it is decided, by what runs the embedder's model: torch, OpenVINO, ONNX Runtime.

The texts are questions of BANKING77, 64 at a time; each is embedded, searched among 10,000 and decided. One thread, its own CPU time: what
else the machine does is not counted. The back ends take turns, round after round; a row is the median of its rounds.

    python benchmarks/embedders.py [--backends torch openvino onnx] [--texts 512] [--rounds 5]
"""

import argparse
from collections.abc import Sequence
from functools import partial
from statistics import median

import numpy as np
from semantic_cache import banking77
from semantic_parts import per_second, whole
from support import print_table, say

from inference_engine.connectors.embedder import load_embedder, packaged_model
from inference_engine.pipeline.ports import Embedder


def embed_all(embedder: Embedder, texts: Sequence[str]) -> int:
    return sum(len(embedder.embed(texts[i : i + 64])) for i in range(0, len(texts), 64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["torch", "openvino", "onnx"], choices=["torch", "openvino", "onnx"])
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    texts = [line.text for line in banking77()[: arguments.texts]]
    found = {name: load_embedder(packaged_model(), threads=1, backend=name) for name in arguments.backends}
    vectors = {name: embedder.embed(texts) for name, embedder in found.items()}
    embed: dict[str, list[float]] = {name: [] for name in found}
    decide: dict[str, list[float]] = {name: [] for name in found}
    for number in range(arguments.rounds):
        say(f"round {number + 1}")
        for name, embedder in found.items():
            embed[name].append(per_second(partial(embed_all, embedder, texts)))
            decide[name].append(whole(embedder, texts))
    true = load_embedder(packaged_model(), threads=1, backend="torch").embed(texts)
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
