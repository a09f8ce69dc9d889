"""The private methods of Faust and aiokafka that the package overrides or relies on are the ones it was tested with."""

import pytest

from inference_engine.agents.safe import assert_runtime, fingerprints, runtime
from inference_engine.pipeline.errors import ConfigError


def test_installed_faust_is_the_tested_one() -> None:
    assert_runtime()


def test_aiokafka_is_as_it_was_read() -> None:
    """Red after an upgrade: read what changed, run the fault tests, then note the new fingerprint."""
    assert {path: runtime.fingerprint(path) for path in fingerprints.AIOKAFKA} == dict(fingerprints.AIOKAFKA)


def test_changed_private_method_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from faust.transport.consumer import Consumer

    async def commit(self: Consumer) -> bool:
        return True

    monkeypatch.setattr(Consumer, "commit", commit)
    with pytest.raises(ConfigError, match=r"Consumer\.commit"):
        assert_runtime()


def test_removed_private_method_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from faust.channels import Channel

    monkeypatch.delattr(Channel, "_clone_args")
    with pytest.raises(ConfigError, match="_clone_args"):
        assert_runtime()


def test_other_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "version", lambda name: "0.16.0")
    with pytest.raises(ConfigError, match=r"0\.16\.0 is installed.*0\.15\.3"):
        assert_runtime()


def test_missing_compiled_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(runtime, "import_module", without)
    with pytest.raises(ConfigError, match="compiled part"):
        assert_runtime()
