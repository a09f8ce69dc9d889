"""Providers of answers: one file per protocol, the simulated one beside them, one conformance suite over all."""

import time
from collections.abc import Callable, Mapping

from ...pipeline.models import ProviderName
from ...pipeline.ports import BatchProvider, Provider
from ..simulated_batches import BatchOptions, SimulatedBatches
from .accounts import Accounts
from .anthropic import ANTHROPIC_URL, AnthropicProvider
from .anthropic_batches import AnthropicBatches
from .cohere import COHERE_URL, CohereProvider
from .openai import OPENAI_URL, OpenAIProvider
from .openai_batches import OpenAIBatches
from .simulated import SimulatedOptions, SimulatedProvider
from .simulated_batches import SimulatedBatchProvider, traits_of
from .vllm import VllmProvider


def build_providers(
    *,
    openai_api_key: str | None = None,
    openai_base_url: str | None = None,
    anthropic_api_key: str | None = None,
    anthropic_base_url: str | None = None,
    vllm_base_url: str | None = None,
    vllm_api_key: str | None = None,
    cohere_api_key: str | None = None,
    cohere_base_url: str | None = None,
    simulated: SimulatedOptions | None = None,
) -> dict[ProviderName, Provider]:
    """The providers that are set up: those with a key or, for servers of one's own that need none, a base URL.

    A key may be several, separated by commas: each has limits of its own, and calls are spread over them.

    Where none is, or `simulated` is given, the simulated one is among them: hand the keys of the result to
    `Catalogue.for_providers` to get the models that can be asked. Raises `ConfigError` for what isn't a URL.
    """
    built: dict[ProviderName, Provider] = {}
    if openai_api_key or openai_base_url:
        built["openai"] = _by_keys(openai_api_key, lambda key: OpenAIProvider(key, openai_base_url or OPENAI_URL))
    if anthropic_api_key or anthropic_base_url:
        built["anthropic"] = _by_keys(anthropic_api_key, lambda key: AnthropicProvider(key, anthropic_base_url or ANTHROPIC_URL))
    if vllm_base_url:
        built["vllm"] = _by_keys(vllm_api_key, lambda key: VllmProvider(vllm_base_url, key))
    if cohere_api_key or cohere_base_url:
        built["cohere"] = _by_keys(cohere_api_key, lambda key: CohereProvider(key, cohere_base_url or COHERE_URL))
    if simulated is not None or not built:
        built["simulated"] = SimulatedProvider(simulated)
    return built


def build_batches(
    providers: Mapping[ProviderName, Provider],
    *,
    openai_api_key: str | None = None,
    openai_base_url: str | None = None,
    anthropic_api_key: str | None = None,
    anthropic_base_url: str | None = None,
    simulated: BatchOptions | None = None,
) -> dict[ProviderName, BatchProvider]:
    """The batches of those of `providers` that have any; vLLM has none. Of several keys the first one is used."""
    built: dict[ProviderName, BatchProvider] = {}
    if "openai" in providers:
        built["openai"] = OpenAIBatches(_first_of(openai_api_key), openai_base_url or OPENAI_URL)
    if "anthropic" in providers:
        built["anthropic"] = AnthropicBatches(_first_of(anthropic_api_key), anthropic_base_url or ANTHROPIC_URL)
    plain = providers.get("simulated")
    if isinstance(plain, SimulatedProvider) and simulated is not None:
        # One bill, one prompt cache and one set of faults for both, as a provider has.
        store = SimulatedBatches(plain.bill, plain.faults, simulated, time.time, cache=plain.cache)
        built["simulated"] = SimulatedBatchProvider(store, traits_of(simulated.turnaround_s))
    return built


def keys_in(setting: str | None) -> list[str]:
    """The keys of a setting that holds one or several."""
    return list(dict.fromkeys(key.strip() for key in (setting or "").split(",") if key.strip()))


def _first_of(setting: str | None) -> str | None:
    """A batch is seen by the key that made it, so all are made with one."""
    return next(iter(keys_in(setting)), None)


def _by_keys(setting: str | None, make: Callable[[str | None], Provider]) -> Provider:
    accounts = [make(key) for key in keys_in(setting)]
    return Accounts(accounts) if len(accounts) > 1 else accounts[0] if accounts else make(None)
