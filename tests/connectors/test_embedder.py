"""One conformance suite over every embedder, and what is particular to each."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference_engine.connectors import convert_model, converted_model
from inference_engine.connectors import embedder as module
from inference_engine.connectors.converted_model import KEPT, ConvertedEmbedder
from inference_engine.connectors.embedder import (
    CONVERTED,
    Backend,
    HashEmbedder,
    SentenceTransformerEmbedder,
    find_embedder,
    load_embedder,
    packaged_model,
)
from inference_engine.connectors.embedding_endpoint import EndpointEmbedder
from inference_engine.connectors.kafka_jars import default_cache_dir
from inference_engine.connectors.onnx_embedder import MODEL, OnnxEmbedder, session
from inference_engine.connectors.openvino_embedder import OpenVinoEmbedder
from inference_engine.pipeline.errors import ConfigError, Rejected, Unavailable
from inference_engine.pipeline.ports import Embedder

BANKING = Path(__file__).parents[1] / "data" / "banking77" / "test.csv"
TEXTS = ["Where is my card?", "where is my card", "My transfer of 20 pounds is late", "How do I bake bread without an oven at home?", ""]


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformerEmbedder:
    return SentenceTransformerEmbedder(threads=1)


def loaded(kind: type[OpenVinoEmbedder | OnnxEmbedder], threads: int) -> OpenVinoEmbedder | OnnxEmbedder:
    return kind(converted_model.converted_model(packaged_model(), default_cache_dir(), kind), threads=threads)


@pytest.fixture(scope="module")
def openvino() -> ConvertedEmbedder:
    return loaded(OpenVinoEmbedder, 1)


@pytest.fixture(scope="module")
def onnx() -> ConvertedEmbedder:
    return loaded(OnnxEmbedder, 1)


def uninstall(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """To whoever asks a converted model's back end whether it can be used."""
    real = converted_model._installed
    monkeypatch.setattr(converted_model, "_installed", lambda name: name not in names and real(name))


class Endpoint(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint on loopback that embeds by hashing; `status` and `mangle` make it misbehave."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.mangle: Callable[[dict[str, Any]], None] = lambda reply: None
        self.asked: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(body)
        rows = HashEmbedder(64).embed(body["input"])
        data = [{"object": "embedding", "index": i, "embedding": row.tolist()} for i, row in enumerate(rows)]
        reply = {"object": "list", "model": body["model"], "data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}}
        self.server.mangle(reply)
        raw = json.dumps(reply if self.server.status == 200 else {"error": {"message": "no"}}).encode()
        self.send_response(self.server.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.send_header("retry-after", "3")
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests print nothing."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def client(endpoint: Endpoint, dimension: int = 64, **options: Any) -> EndpointEmbedder:
    return EndpointEmbedder("some-model", dimension, base_url=endpoint.url, api_key="k", **options)


@pytest.fixture(params=["minilm", "openvino", "onnx", "hash", "endpoint"])
def embedder(request: pytest.FixtureRequest) -> Embedder:
    if request.param in ("minilm", "openvino", "onnx"):
        found: Embedder = request.getfixturevalue(request.param)
        return found
    return HashEmbedder() if request.param == "hash" else client(request.getfixturevalue("endpoint"))


def rounding(embedder: Embedder) -> float:
    """How far a component of a vector may move with the width of its batch: OpenVINO computes in bfloat16 where the processor has it."""
    return 2e-3 if isinstance(embedder, OpenVinoEmbedder) else 1e-5


def test_vectors_have_the_dimension_and_unit_length(embedder: Embedder) -> None:
    vectors = embedder.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), embedder.dimension)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_no_texts_give_no_vectors(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, embedder.dimension)
    assert embedder.embed_whole([]).whole.shape == (0,)


def test_a_text_has_the_same_vector_in_any_company_and_order(embedder: Embedder) -> None:
    alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
    together = embedder.embed(TEXTS[::-1])[::-1]
    assert np.allclose(alone, together, atol=rounding(embedder))


def test_texts_with_shared_words_are_closer_than_others(embedder: Embedder) -> None:
    a, b, _, other, _ = embedder.embed(TEXTS)
    assert float(a @ b) > float(a @ other) + 0.2


def test_a_text_that_is_too_long_is_marked_and_has_no_vector(embedder: Embedder) -> None:
    long = "card " * (embedder.max_tokens + 1)
    assert embedder.count_tokens([long])[0] > embedder.max_tokens
    result = embedder.embed_whole(["Where is my card?", long, "What is a card?"])
    assert result.whole.tolist() == [True, False, True]
    assert not result.vectors[1].any()
    assert np.allclose(result.vectors[[0, 2]], embedder.embed(["Where is my card?", "What is a card?"]), atol=rounding(embedder))


def test_a_lone_surrogate_is_never_compared(embedder: Embedder) -> None:
    assert embedder.embed_whole(["a \ud800 b", "fine"]).whole.tolist() == [False, True]


def test_minilm_equals_the_library_on_real_questions(minilm: SentenceTransformerEmbedder) -> None:
    """Our batching changes nothing: cosine to `SentenceTransformer.encode` is 1 to five digits."""
    with BANKING.open() as f:
        texts = [row["text"] for row in csv.DictReader(f)][:96:3]
    expected = minilm.model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    assert (expected * minilm.embed(texts)).sum(axis=1).min() > 0.99999


@pytest.mark.parametrize(("name", "least"), [("openvino", 0.9999), ("onnx", 0.99999)])
def test_a_converted_model_makes_torchs_vectors_of_real_questions(
    minilm: SentenceTransformerEmbedder, name: str, least: float, request: pytest.FixtureRequest
) -> None:
    """ONNX Runtime's by five digits, OpenVINO's bfloat16 by four: what decides about a hit is a hundred times as much."""
    converted: ConvertedEmbedder = request.getfixturevalue(name)
    with BANKING.open() as f:
        texts = [row["text"] for row in csv.DictReader(f)][:96]
    assert (converted.embed(texts) * minilm.embed(texts)).sum(axis=1).min() > least
    assert converted.count_tokens(texts) == minilm.count_tokens(texts)


@pytest.mark.parametrize("kind", CONVERTED.values())
def test_threads_that_embed_at_once_get_the_vectors_of_their_own_texts(kind: type[OpenVinoEmbedder | OnnxEmbedder]) -> None:
    embedder = loaded(kind, 4)
    assert embedder.parallel == 4
    texts = [[f"{text} {number}" for text in TEXTS] for number in range(16)]
    alone = [embedder.embed(some) for some in texts]
    with ThreadPoolExecutor(embedder.parallel) as threads:
        together = list(threads.map(embedder.embed, texts))
    assert np.allclose(alone, together, atol=1e-6)


@pytest.mark.parametrize("kind", CONVERTED.values())
def test_a_models_first_pass_is_made_before_threads_may_begin_theirs(
    monkeypatch: pytest.MonkeyPatch, kind: type[OpenVinoEmbedder | OnnxEmbedder]
) -> None:
    """Two first passes at once waited for each other for ever, seen once in some hundred starts."""
    passes: list[list[str]] = []
    embed = kind.embed

    def told(self: ConvertedEmbedder, texts: list[str]) -> Any:
        vectors = embed(self, texts)
        passes.append(texts)
        return vectors

    monkeypatch.setattr(kind, "embed", told)
    loaded(kind, 2)
    assert len(passes) == 1


@pytest.mark.parametrize(("backend", "name"), [("auto", "openvino"), ("openvino", "openvino"), ("onnx", "onnx")])
def test_a_model_is_converted_once(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, name: str, openvino: OpenVinoEmbedder, onnx: OnnxEmbedder
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it was converted again"))
    assert isinstance(load_embedder(packaged_model(), backend=backend), CONVERTED[name])


def test_a_model_that_one_back_end_can_not_run_is_run_by_the_next_unless_that_one_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, onnx: OnnxEmbedder
) -> None:
    real = converted_model.converted_model
    refused: list[type[ConvertedEmbedder]] = [OpenVinoEmbedder]

    def refuse(folder: Path, cache_dir: Path, kind: type[ConvertedEmbedder]) -> Path:
        if kind in refused:
            raise Unavailable("an operation that it does not know")
        return real(folder, cache_dir, kind)

    monkeypatch.setattr(module, "converted_model", refuse)
    assert isinstance(load_embedder(packaged_model(), threads=1), OnnxEmbedder)
    refused.append(OnnxEmbedder)
    assert isinstance(load_embedder(packaged_model(), threads=1), SentenceTransformerEmbedder)
    with pytest.raises(ConfigError, match=r"EMBEDDING_BACKEND is openvino.*operation"):
        load_embedder(packaged_model(), backend="openvino")
    with pytest.raises(ConfigError, match=r"EMBEDDING_BACKEND is onnx.*operation"):
        load_embedder(packaged_model(), backend="onnx")


def test_a_back_end_that_is_asked_for_and_not_installed_is_a_configuration_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uninstall(monkeypatch, "onnx", "onnxscript", "openvino")
    with pytest.raises(ConfigError, match=r"lacks the packages onnx, onnxscript; pip install 'inference-engine\[embed,onnx\]'"):
        load_embedder(packaged_model(), backend="onnx")
    with pytest.raises(ConfigError, match=r"lacks the packages openvino; pip install 'inference-engine\[embed\]'"):
        load_embedder(packaged_model(), backend="openvino")


def test_auto_takes_what_is_installed(monkeypatch: pytest.MonkeyPatch, onnx: OnnxEmbedder) -> None:
    uninstall(monkeypatch, "openvino")
    assert isinstance(load_embedder(packaged_model(), threads=1), OnnxEmbedder)
    uninstall(monkeypatch, "onnxruntime")
    assert isinstance(load_embedder(packaged_model(), threads=1), SentenceTransformerEmbedder)


def test_a_model_that_onnx_runtime_can_not_read_is_told_as_unavailable(tmp_path: Path) -> None:
    """Its own errors are none that anybody here expects."""
    (tmp_path / MODEL).write_bytes(b"not a model")
    with pytest.raises(Unavailable, match="ONNX Runtime can't load"):
        OnnxEmbedder(tmp_path)


def test_onnx_runtime_is_silenced_before_it_is_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its telemetry is on by default, and begins with the import."""
    told = "import os\n\nassert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\nraise ImportError('it was silenced')\n"
    (tmp_path / "onnxruntime.py").write_text(told)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    with pytest.raises(ImportError, match="it was silenced"):
        session(tmp_path / MODEL)


@pytest.mark.parametrize("kind", CONVERTED.values())
def test_what_a_failed_conversion_said_is_told_and_nothing_half_made_stays(
    tmp_path: Path, kind: type[OpenVinoEmbedder | OnnxEmbedder]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    with pytest.raises(Unavailable, match="can't be converted"):
        converted_model.converted_model(model, tmp_path / "cache", kind)
    assert list((tmp_path / "cache" / "embedders").iterdir()) == []


@pytest.mark.parametrize("wrong_from", [1, 2])
def test_a_converted_model_that_makes_other_vectors_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, minilm: SentenceTransformerEmbedder, wrong_from: int
) -> None:
    """Whether of texts together or of each alone."""

    class Wrong:
        def __init__(self, converted: Path) -> None:
            self.calls = 0

        def embed(self, texts: list[str]) -> Any:
            self.calls += 1
            return -minilm.embed(texts) if self.calls >= wrong_from else minilm.embed(texts)

    monkeypatch.setattr(convert_model, "to_onnx", lambda *_: None)
    monkeypatch.setitem(CONVERTED, "onnx", Wrong)
    with pytest.raises(ValueError, match="makes other vectors"):
        convert_model.convert("onnx", packaged_model(), tmp_path)


def test_the_cache_keeps_the_models_that_were_used_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0))
    models = [tmp_path / f"model-{number}" for number in range(KEPT + 1)]
    made = []
    for age, model in enumerate(models[:-1]):
        model.mkdir()
        made.append(converted_model.converted_model(model, tmp_path, OnnxEmbedder))
        os.utime(made[-1], (age, age))
    models[-1].mkdir()
    assert converted_model.converted_model(models[0], tmp_path, OnnxEmbedder) == made[0]
    assert converted_model.converted_model(models[-1], tmp_path, OnnxEmbedder).is_dir()
    assert [folder.is_dir() for folder in made] == [True, False, *[True] * (KEPT - 2)]


def test_minilm_sees_meaning(minilm: SentenceTransformerEmbedder) -> None:
    a, b, other = minilm.embed(["My card has not arrived", "Still waiting on the card you sent me", "How do I change my PIN?"])
    assert float(a @ b) > float(a @ other) + 0.2


def test_minilm_refuses_to_compare_words_that_it_has_no_token_for(minilm: SentenceTransformerEmbedder) -> None:
    """Every unknown word is the same token to the model: two different ones would have cosine 1.0."""
    assert minilm.embed_whole(["so 🙏", "so 😡", "so"]).whole.tolist() == [False, False, True]
    assert np.allclose(*minilm.embed(["so 🙏", "so 😡"]))


def test_a_megabyte_is_known_to_be_too_long_without_tokenising_it(minilm: SentenceTransformerEmbedder) -> None:
    """One endless word is one token to the tokenizer, and still too long."""
    assert minilm.count_tokens(["x" * 1_000_000])[0] == minilm.max_tokens + 1


def test_a_reduced_dimension_keeps_unit_length_and_the_head_of_the_vector(minilm: SentenceTransformerEmbedder) -> None:
    reduced = SentenceTransformerEmbedder(dimension=256).embed(TEXTS)
    assert reduced.shape == (len(TEXTS), 256)
    head = minilm.embed(TEXTS)[:, :256]
    assert np.allclose(reduced, head / np.linalg.norm(head, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("dimension", [0, 385])
def test_an_impossible_dimension_is_a_configuration_error(dimension: int) -> None:
    with pytest.raises(ConfigError, match="EMBEDDING_DIMENSION"):
        SentenceTransformerEmbedder(dimension=dimension)


def test_without_the_extra_there_is_no_embedder_but_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "sentence_transformers" else real(name))
    found = find_embedder()
    assert found.embedder is None
    assert "sentence-transformers" in found.reason
    assert "[embed]" in found.reason
    with pytest.raises(ConfigError, match="embed"):
        SentenceTransformerEmbedder()


def test_a_missing_folder_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model folder"):
        SentenceTransformerEmbedder(tmp_path / "nothing")


def test_the_endpoint_books_the_tokens_and_sends_only_what_is_whole(endpoint: Endpoint) -> None:
    result = client(endpoint, max_tokens=10).embed_whole(["short", "much longer than ten bytes"])
    assert result.billed_tokens == 7
    assert endpoint.asked[0]["input"] == ["short"]
    assert "dimensions" not in endpoint.asked[0]


def test_texts_that_an_endpoint_may_cut_are_not_compared(endpoint: Endpoint) -> None:
    """Several servers cut in silence: two texts that differ after the cut would have cosine 1."""
    head = "!" * 253
    result = client(endpoint).embed_whole([f"{head}?", f"{head}??", ""])
    assert list(result.whole) == [True, False, False]


def test_the_endpoint_is_asked_for_the_dimension_or_its_vectors_are_cut(endpoint: Endpoint) -> None:
    assert client(endpoint, 32).embed(["a b"]).shape == (1, 32)
    client(endpoint, 32, send_dimension=True).embed(["a b"])
    assert endpoint.asked[-1]["dimensions"] == 32


def test_vectors_shorter_than_the_setting_are_a_configuration_error(endpoint: Endpoint) -> None:
    with pytest.raises(ConfigError, match="EMBEDDING_DIMENSION"):
        client(endpoint, 65).embed(["a"])


@pytest.mark.parametrize(
    ("status", "error"), [(429, Unavailable), (503, Unavailable), (401, ConfigError), (404, ConfigError), (400, Rejected)]
)
def test_the_endpoints_errors_are_named_for_what_to_do(endpoint: Endpoint, status: int, error: type[Exception]) -> None:
    endpoint.status = status
    with pytest.raises(error):
        client(endpoint).embed(["a"])
    assert len(endpoint.asked) == 1


def test_too_few_vectors_are_not_assigned_to_the_wrong_texts(endpoint: Endpoint) -> None:
    endpoint.mangle = lambda reply: reply["data"].pop(0)
    with pytest.raises(Unavailable, match="none is used"):
        client(endpoint).embed(["a", "b"])


def test_vectors_out_of_order_are_put_back_by_their_index(endpoint: Endpoint) -> None:
    endpoint.mangle = lambda reply: reply["data"].reverse()
    assert np.allclose(client(endpoint).embed(["a", "b c"]), HashEmbedder(64).embed(["a", "b c"]), atol=1e-5)


def test_an_endpoint_that_is_gone_is_unavailable(endpoint: Endpoint) -> None:
    gone = EndpointEmbedder("m", 8, base_url="http://127.0.0.1:9/v1", api_key="k")
    with pytest.raises(Unavailable, match="can't be reached"):
        gone.embed(["a"])
    gone.close()
