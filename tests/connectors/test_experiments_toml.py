"""The experiments file: read as written, and strict."""

from pathlib import Path

import pytest

from inference_engine.connectors.experiments_toml import load_experiments
from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.pipeline.errors import ConfigError
from inference_engine.pipeline.experiments import Experiment, Experiments, Variant

MODELS = load_catalogue().for_providers(["simulated"])


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "experiments.toml"


def test_an_experiment_is_read_as_it_is_written_under_the_models_canonical_names(own: Path) -> None:
    model = next(m for m in MODELS.models if m.aliases)
    own.write_text(
        '[cheaper]\nunit = "user"\nshare = 0.5\ntenants = ["acme"]\nfeatures = ["chat"]\n'
        f'variants = [{{ name = "as-now", weight = 3 }}, {{ name = "small", model = "{model.aliases[0]}" }}, '
        '{ name = "learned", policy = "learned" }]\n'
    )
    variants = (Variant("as-now", 3.0), Variant("small", model=model.name), Variant("learned", policy="learned"))
    wanted = Experiment("cheaper", variants, "user", 0.5, frozenset({"acme"}), frozenset({"chat"}))
    assert load_experiments(own, MODELS) == Experiments((wanted,))


def test_without_a_file_nothing_runs() -> None:
    assert load_experiments(None, MODELS) == Experiments()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[x", "not valid TOML"),
        ('[x]\nvariant = []\nvariants = [{name = "a"}, {name = "b"}]', "variant"),
        ('[x]\nvariants = [{name = "a"}]', "two variants"),
        ('[x]\nvariants = [{name = "a"}, {name = "b", model = "gpt-none"}]', "unknown model"),
        ('[x]\nvariants = [{name = "a"}, {name = "b", policy = "best"}]', "policy"),
        ('[x]\nunit = "session"\nvariants = [{name = "a"}, {name = "b"}]', "unit"),
        ('[x]\nvariants = [{name = "a"}, {name = "b", weight = 0}]', "weight"),
    ],
)
def test_a_mistake_is_named(own: Path, text: str, said: str) -> None:
    own.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_experiments(own, MODELS)


def test_a_file_that_is_not_there_is_told(own: Path) -> None:
    with pytest.raises(ConfigError, match="EXPERIMENTS_FILE"):
        load_experiments(own, MODELS)
