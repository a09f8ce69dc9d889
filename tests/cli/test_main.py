"""The command line itself: quick help, one message per mistake."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inference_engine.cli import main as cli
from inference_engine.pipeline.errors import ConfigError, Unavailable


def test_help_imports_none_of_the_heavy_parts() -> None:
    code = (
        "import sys\nfrom inference_engine.cli.main import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'pydantic', 'faust', 'confluent_kafka', 'rich', 'aiohttp', 'numpy', 'structlog', 'orjson'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = "run submit collect cancel revoke up down worker gateway sink sql report doctor config evaluate topics version"
    assert all(f"  {name} " in done.stdout for name in names.split())


def ended(error: BaseException) -> int:
    with pytest.raises(SystemExit) as end, cli._plain_errors(lambda _: Path("the-log")):
        raise error
    code = end.value.code
    assert isinstance(code, int)
    return code


def test_errors_of_ours_are_one_message_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(ConfigError("do this instead")) == 2
    assert capsys.readouterr().err == "do this instead\n"
    assert ended(Unavailable("Kafka is silent")) == 2
    assert capsys.readouterr().err == "Stopped: Kafka is silent\n"


def test_a_wrong_setting_is_2_for_config_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALL_TIMEOUT_SECONDS", "soon")
    done = CliRunner().invoke(cli.app, ["config"])
    assert done.exit_code == 2
    assert "CALL_TIMEOUT_SECONDS" in done.output


def test_an_interrupt_is_130() -> None:
    assert ended(KeyboardInterrupt()) == 130


def test_a_missing_part_is_named_and_the_others_are_not_touched(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(ModuleNotFoundError("no", name="inference_engine.cli.gone")) == 2
    assert "inference_engine.cli.gone" in capsys.readouterr().err


def test_the_unexpected_says_where_its_details_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(ZeroDivisionError("oops")) == 70
    assert "the-log" in capsys.readouterr().err


def test_the_log_gets_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_ENGINE_HOME", str(tmp_path))
    try:
        raise ZeroDivisionError("oops")
    except ZeroDivisionError as error:
        path = cli._log(error)
    assert path is not None
    assert "ZeroDivisionError: oops" in path.read_text()
