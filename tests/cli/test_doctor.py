"""The doctor: every finding has a verdict and a remedy, and no secret is ever shown."""

import http.server
import io
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from inference_engine.cli import examinations as look
from inference_engine.cli.children import Child
from inference_engine.cli.doctor import examine, exit_code, print_checks
from inference_engine.cli.examinations import GIB, Check
from inference_engine.cli.main import app
from inference_engine.connectors.data_folder import DataFolder
from inference_engine.connectors.kafka_admin import create_topics, topic_specs
from inference_engine.connectors.onnx_embedder import OnnxEmbedder
from inference_engine.connectors.openvino_embedder import OpenVinoEmbedder
from inference_engine.schemas.topics import Topics


@pytest.fixture
def server() -> Iterator[str]:
    """Answers 200 under /health and /ping, 404 elsewhere; refuses any request with credentials."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in ("/health", "/ping") and "Authorization" not in self.headers else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(("free", "verdict"), [(GIB // 2, "fail"), (2 * GIB, "warn"), (50 * GIB, "ok")])
def test_little_disk_warns_and_less_fails(tmp_path: Path, free: int, verdict: str) -> None:
    found = look.disk(DataFolder(tmp_path), free_bytes=free)
    assert found.verdict == verdict
    assert bool(found.remedy) == (verdict != "ok")


@pytest.mark.parametrize(("available", "verdict"), [(GIB // 2, "fail"), (GIB, "warn"), (8 * GIB, "ok")])
def test_little_memory_warns_and_less_fails(available: int, verdict: str) -> None:
    assert look.memory(available_bytes=available).verdict == verdict


def test_an_old_python_fails_and_this_one_is_fine() -> None:
    assert look.python((3, 10)).verdict == "fail"
    assert look.python().verdict == "ok"


def test_a_faust_that_no_worker_would_start_with_fails_with_the_worker_s_own_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert look.faust().verdict == "ok"
    monkeypatch.setenv("NO_CYTHON", "1")
    assert look.faust().verdict == "warn"
    monkeypatch.setitem(sys.modules, "faust._cython.streams", None)
    found = look.faust()
    assert (found.verdict, "compiled part" in found.message, "wheel" in found.remedy) == ("fail", True, True)


def test_a_folder_that_does_not_exist_yet_is_judged_by_the_one_above(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "a" / "b")
    assert look.writable(folder).verdict == "ok"
    assert look.disk(folder).verdict == "ok"
    assert not folder.root.exists(), "looking creates nothing"


def test_a_folder_that_is_a_file_fails_with_the_setting_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = look.writable(DataFolder(tmp_path / "file"))
    assert (found.verdict, "INFERENCE_ENGINE_HOME" in found.remedy) == ("fail", True)


def test_a_model_whose_circuit_breaker_is_open_is_named_with_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "worker-0": {"models": {"a": {"circuit_breaker": "closed"}, "b": {"circuit_breaker": "open"}}},
        "worker-1": {"models": {"b": {"circuit_breaker": "half_open"}}},
    }
    monkeypatch.setattr(look, "_health", lambda child, _timeout: told.get(child.name))
    found = {name: Child(name, 1, 1) for name in ("worker-0", "worker-1", "sink")}
    check = look.models(found)
    assert check is not None
    assert check.verdict == "warn"
    assert "b in worker-0, worker-1" in check.message
    told["worker-0"]["models"].pop("b")
    told.pop("worker-1")
    assert (check := look.models(found)) is not None
    assert check.verdict == "ok"
    assert look.models({"sink": Child("sink", 1, 1), "worker-0": None}) is None


def test_a_broker_with_all_topics_is_well(kafka: str, topic_prefix: str) -> None:
    specs = topic_specs(Topics(topic_prefix), 2)
    create_topics(kafka, specs)
    assert look.broker(kafka).verdict == "ok"
    assert look.topics(kafka, specs).verdict == "ok"


def test_missing_topics_warn_and_unfit_ones_fail(kafka: str, topic_prefix: str) -> None:
    """What `up` mends is a warning; what would lose records is not."""
    specs = topic_specs(Topics(topic_prefix), 2)
    assert look.topics(kafka, specs).verdict == "warn"
    create_topics(kafka, specs)
    found = look.topics(kafka, topic_specs(Topics(topic_prefix), 3))
    assert found.verdict == "fail"
    assert "has 2 partitions, the engine needs 3" in found.message


def test_no_broker_is_a_warning_and_a_dead_address_a_failure() -> None:
    assert look.broker(None).verdict == "warn"
    assert look.broker("127.0.0.1:1", timeout_s=1).verdict == "fail"
    assert look.topics("127.0.0.1:1", [], timeout_s=1).verdict == "fail"


def test_each_child_is_told_apart(server: str, tmp_path: Path) -> None:
    """Well, starting, hung and missing."""
    port = int(server.rpartition(":")[2])
    found = {"sink": Child("sink", 11, port), "worker-0": None, "worker-1": Child("worker-1", 12, 1)}
    verdicts = {check.name: (check.verdict, check.message) for check in look.children(DataFolder(tmp_path), found, 3)}
    assert verdicts["sink"][0] == "ok"
    assert verdicts["worker-0"] == ("warn", "is starting")
    assert verdicts["worker-1"][0] == "fail"
    assert verdicts["worker-2"] == ("warn", "doesn't run on this machine")


def test_a_server_is_asked_without_its_password(server: str) -> None:
    """The password is neither sent nor shown."""
    url = server.replace("http://", "http://user:s3cret@") + "/database?password=s3cret"
    found = look.reachable("clickhouse", "CLICKHOUSE_URL", url, "/ping")
    assert found.verdict == "ok"
    assert "s3cret" not in str(found)
    assert look.reachable("qdrant", "QDRANT_URL", url, "/readyz").message == f"{server}: answers 404"
    assert look.reachable("qdrant", "QDRANT_URL", "127.0.0.1:6333", "/readyz").verdict == "fail"


def test_jars_that_are_not_there_yet_are_a_warning_with_the_ways(tmp_path: Path) -> None:
    assert look.jars(needed=True, cache_dir=tmp_path).verdict == "warn"
    assert look.jars(needed=False, cache_dir=tmp_path).verdict == "ok"


def test_the_embedders_check_names_what_runs_the_model_and_fails_where_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVinoEmbedder, "missing", lambda: [])
    monkeypatch.setattr(OnnxEmbedder, "missing", lambda: ["onnxruntime"])
    assert look.embedder(None, enabled=True).message.endswith("by OpenVINO")
    assert look.embedder(None, enabled=True, backend="torch").message.endswith("by torch")
    found = look.embedder(None, enabled=True, backend="onnx")
    assert found.verdict == "fail"
    assert "lacks the packages onnxruntime" in found.message
    assert "[embed,onnx]" in found.remedy
    assert look.embedder(None, enabled=False, backend="onnx").verdict == "ok"


def test_only_a_failure_fails_the_command() -> None:
    ok = Check("a", "ok", "fine")
    assert exit_code([ok, replace(ok, verdict="warn")]) == 0
    assert exit_code([ok, replace(ok, verdict="fail")]) == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_texts_are_printed_as_they_are(terminal: bool) -> None:
    """Square brackets are text, not markup."""
    out = io.StringIO()
    print_checks(
        [Check("embedder", "warn", "off", "pip install 'inference-engine[embed]'")], Console(file=out, force_terminal=terminal, width=200)
    )
    assert "pip install 'inference-engine[embed]'" in out.getvalue()


def test_the_whole_examination_tells_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFERENCE_ENGINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    checks = list(examine())
    assert {"settings", "python", "java", "broker", "topics", "sink", "worker-0", "embedder", "providers"} <= {
        check.name for check in checks
    }
    assert "openai" in next(check.message for check in checks if check.name == "providers")
    assert "very-secret" not in str(checks)
    assert all(check.remedy for check in checks if check.verdict != "ok")
    assert not (tmp_path / "home").exists()


def test_a_misspelt_setting_is_one_finding_among_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CACHE_TTL_SECOND", "5")
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "CACHE_TTL_SECONDS" in done.output
    assert "python" in done.output
