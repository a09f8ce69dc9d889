"""`evaluate cache` from the file to the figures, with a fast embedder in place of the model."""

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inference_engine.agents.settings import Settings
from inference_engine.cli import evaluate_cache
from inference_engine.cli.main import app
from inference_engine.connectors.embedder import FoundEmbedder, HashEmbedder

KEYS = [
    *("requests", "hits", "wrong", "hit_rate", "error_per_request", "error_per_hit", "intervals"),
    *("coalesced", "wrong_merges", "decision_us", "bytes_per_entry"),
]
TOPICS = ["where is my card", "how do I top up", "why was I charged a fee", "can I change my name", "exchange rates for euros"]
WAYS = ["{}", "{} please", "hi, {}", "{} thanks", "{} now", "tell me {}"]


def made_by(settings: Settings) -> FoundEmbedder:
    return FoundEmbedder(HashEmbedder(settings.caching.embedding_dimension), f"{settings.embedding_model}")


@pytest.fixture(autouse=True)
def embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_cache, "configured_embedder", made_by)


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    """600 questions of five intents in two scopes, each in one of six wordings."""
    path = tmp_path / "stream.jsonl"
    rows = [(TOPICS[i % 5], WAYS[(i // 5 * 7 + i) % 6], i % 2) for i in range(600)]
    lines = [{"text": way.format(topic), "answer_group": f"{topic} {scope}", "scope": str(scope)} for topic, way, scope in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def invoke(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["evaluate", "cache", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_the_object_for_programs_has_its_keys_and_its_figures_agree(stream: Path) -> None:
    code, out, _ = invoke(stream, "--json", "--coalesce")
    found = json.loads(out)
    assert code == 0
    assert list(found) == KEYS
    assert found["requests"] == 600
    assert found["hits"] > 200
    assert found["coalesced"] <= found["hits"]
    assert found["wrong_merges"] <= found["wrong"]
    assert found["hit_rate"] == found["hits"] / 600
    assert found["error_per_request"] == found["wrong"] / 600
    for name, (low, high) in found["intervals"].items():
        assert low <= found[name] <= high


def test_two_runs_say_the_same_apart_from_the_time(stream: Path) -> None:
    first, second = (json.loads(invoke(stream, "--json", "--judge-noise", 0.05)[1]) for _ in range(2))
    first.pop("decision_us"), second.pop("decision_us")
    assert first == second


def test_the_static_policy_has_a_threshold_and_learns_nothing(stream: Path) -> None:
    all_right = json.loads(invoke(stream, "--json", "--policy", "static", "--threshold", 0.999)[1])
    loose = json.loads(invoke(stream, "--json", "--policy", "static", "--threshold", 0.2)[1])
    assert all_right["wrong"] == 0
    assert loose["hits"] > all_right["hits"] > 400


def test_the_embedder_is_the_one_that_the_engine_would_use(stream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = json.loads(invoke(stream, "--json")[1])
    monkeypatch.setenv("EMBEDDING_DIMENSION", "16")
    monkeypatch.setenv("EMBEDDING_MODEL", "my-model")
    code, out, said = invoke(stream, "--json")
    assert code == 0
    assert "embedding with my-model" in said
    assert json.loads(out)["bytes_per_entry"] < wide["bytes_per_entry"] / 2


@pytest.mark.parametrize("coalesce", [(), ("--coalesce",)])
def test_a_bound_of_0_shares_nothing_as_in_the_engine(stream: Path, coalesce: tuple[str, ...]) -> None:
    code, out, _ = invoke(stream, "--json", "--bound", 0, *coalesce)
    assert code == 0
    assert json.loads(out)["hits"] == 0
    assert "nothing is shared" in invoke(stream, "--bound", 0, *coalesce)[1]


def test_people_get_tables_and_a_picture(stream: Path, tmp_path: Path) -> None:
    code, out, _ = invoke(stream, "--plot", tmp_path / "curve.png")
    assert code == 0
    assert "Shared answers" in out
    assert "Precision against hit ratio" in out
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_bad_lines_are_named_and_left_out_and_the_end_is_1(stream: Path) -> None:
    bad = ["{", "[]", '{"text": 1, "answer_group": "a"}', '{"text": "a"}', '{"text": "a", "answer_group": []}', '{"answer_group": "x"}']
    stream.write_text("\n".join([*bad, "", stream.read_text()]))
    code, out, err = invoke(stream, "--json")
    assert code == 1
    assert json.loads(out)["requests"] == 600
    for number in range(1, 6):
        assert f"line {number}: " in err
    assert "6 bad lines are left out, 1 of them not named here" in err


def test_compressed_streams_and_numbers_as_groups_are_read(tmp_path: Path) -> None:
    path = tmp_path / "stream.jsonl.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"text": "a", "answer_group": 7, "scope": null}\n'))
    code, out, _ = invoke(path, "--json")
    assert code == 0
    assert json.loads(out)["hits"] == 0
    assert json.loads(out)["error_per_hit"] is None


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (None, (), "can't be read"),
        ("", (), "holds no line"),
        ("nonsense\n", (), "line 1: no JSON"),
        ('{"text": "a", "answer_group": "b"}', ("--bound", "1.5"), "CACHE_ERROR_BOUND"),
        ('{"text": "a", "answer_group": "b"}', ("--threshold", "0"), "CACHE_SIMILARITY_THRESHOLD"),
    ],
)
def test_what_can_not_be_replayed_says_why(tmp_path: Path, content: str | None, options: tuple[str, ...], says: str) -> None:
    path = tmp_path / "stream.jsonl"
    if content is not None:
        path.write_text(content)
    done = CliRunner().invoke(app, ["evaluate", "cache", str(path), *options])
    assert says in str(done.exception)
