"""The models file: built in, overridden, switched, and strict."""

from decimal import Decimal
from pathlib import Path

import pytest

from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.pipeline.errors import ConfigError, Rejected


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "models.toml"


def test_built_in_models_cover_every_tier_of_both_providers() -> None:
    for provider in ("openai", "anthropic"):
        tiers = {m.tier for m in load_catalogue().models if m.provider == provider and m.auto}
        assert tiers == {"economy", "standard", "premium"}


@pytest.mark.parametrize("name", ["gpt-4", "gpt-3.5-turbo", "gpt-4-mini", "sim-economy", "sim-standard", "sim-premium"])
def test_names_that_people_ask_for_resolve(name: str) -> None:
    assert load_catalogue().get(name).enabled


def test_own_file_changes_one_field_and_keeps_the_rest(own: Path) -> None:
    own.write_text('[models."gpt-6-luna"]\nrequests_per_minute = 600\nprices = { input = 0.123456, output = "0.5" }\n')
    before, after = load_catalogue().get("gpt-6-luna"), load_catalogue(own).get("gpt-6-luna")
    assert after.requests_per_minute == 600
    assert after.prices is not None
    assert after.prices.input == Decimal("0.123456")
    assert (after.tier, after.context_tokens) == (before.tier, before.context_tokens)


def test_own_file_may_stand_alone(own: Path) -> None:
    own.write_text(
        'include_defaults = false\ndefault_premium = "mine"\n[models.mine]\nprovider = "vllm"\n'
        'provider_model = "org/mine"\ntier = "economy"\n'
        "context_tokens = 8192\nmax_output_tokens = 1024\nprices = { input = 0, output = 0 }\n"
    )
    (model,) = load_catalogue(own).models
    assert model.provider_model == "org/mine"
    assert model.prices is not None
    assert model.prices.cache_read == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("default_premum = 'x'", "did you mean 'default_premium'"),
        ("[models.'gpt-4']\nmax_in_fligt = 3", "did you mean 'max_in_flight'"),
        ("[models.'gpt-4']\nprices = { input = 1, outputs = 2 }", "did you mean 'output'"),
        ("[models.'gpt-4']\nprices = { input = 1 }", "no 'output'"),
        ("[models.'gpt-4']\nprices = { input = -1, output = 1 }", "exactly"),
        ("[models.'gpt-4']\nprices = { input = 0.0000001, output = 1 }", "exactly"),
        ("[models.'gpt-4']\nprices = { input = nan, output = 1 }", "exactly"),
        ("[models.'gpt-4']\ntier = 'cheap'", "one of economy, standard, premium"),
        ("[models.'gpt-4']\ncontext_tokens = true", "whole number"),
        ("[models.'gpt-4']\naliases = ['gpt-4o']", "twice"),
        ("[models.new]\nprovider = 'openai'", "no 'tier'"),
        ("[models.new]\nprovider = 'vllm'\ntier = 'economy'\ncontext_tokens = 1\nmax_output_tokens = 1", "prices must be given"),
        ("default_premium = 'nobody'", "nobody"),
        ("include_defaults = false", "no model"),
        ("[models", "not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_what_to_write(own: Path, text: str, says: str) -> None:
    own.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_catalogue(own)
    assert says in str(caught.value)


def test_a_file_that_is_not_there_is_named(own: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        load_catalogue(own)


def test_a_switch_turns_a_family_off_and_a_models_name_wins_over_it() -> None:
    catalogue = load_catalogue(switches={"GPT4": False, "gpt4omini": True, "GPT35": False, "CLAUDE": False})
    off = {m.name for m in catalogue.models if not m.enabled}
    assert {"gpt-4", "gpt-4o", "gpt-3.5-turbo", "claude-opus-5-5"} <= off
    assert "gpt-4o-mini" not in off
    with pytest.raises(Rejected, match="MODELS_GPT4_ENABLED"):
        catalogue.get("gpt-4")


def test_an_unknown_switch_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="MODELS_CLAUDE_ENABLED"):
        load_catalogue(switches={"CLAUD": True})


def test_models_of_providers_that_are_not_set_up_say_what_is_missing() -> None:
    catalogue = load_catalogue().for_providers(["openai"])
    assert catalogue.get("gpt-6-luna").enabled
    with pytest.raises(Rejected, match="ANTHROPIC_API_KEY"):
        catalogue.get("claude-opus-5-5")
    with pytest.raises(Rejected, match="simulated"):
        catalogue.get("sim-economy")
    assert catalogue.counterfactual("claude-opus-5-5").name == "claude-opus-5-5"


def test_a_model_is_asked_by_the_responses_api_where_its_provider_has_one(own: Path) -> None:
    own.write_text('[models."gpt-6-luna"]\napi = "responses"\n')
    catalogue = load_catalogue(own)
    assert (catalogue.get("gpt-6-luna").api, catalogue.get("gpt-6.1-terra").api) == ("responses", "chat")
    own.write_text('[models."claude-opus-5-5"]\napi = "responses"\n')
    with pytest.raises(ConfigError, match="anthropic"):
        load_catalogue(own)


def test_languages_are_codes(own: Path) -> None:
    own.write_text('[models."gpt-6-luna"]\nlanguages = ["en", "de"]\n')
    assert load_catalogue(own).get("gpt-6-luna").languages == ("en", "de")
    own.write_text('[models."gpt-6-luna"]\nlanguages = ["German"]\n')
    with pytest.raises(ConfigError, match="codes like"):
        load_catalogue(own)
