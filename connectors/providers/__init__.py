"""Providers of answers: one file per protocol, the simulated one beside them, one conformance suite over all."""

import time
from collections.abc import Mapping

from ...pipeline.models import ProviderName
from ...pipeline.ports import BatchProvider, Provider
from ..simulated_batches import BatchOptions, SimulatedBatches
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

    Where none is, or `simulated` is given, the simulated one is among them: hand the keys of the result to
    `Catalogue.for_providers` to get the models that can be asked. Raises `ConfigError` for what isn't a URL.
    """
    built: dict[ProviderName, Provider] = {}
    if openai_api_key or openai_base_url:
        built["openai"] = OpenAIProvider(openai_api_key, openai_base_url or OPENAI_URL)
    if anthropic_api_key or anthropic_base_url:
        built["anthropic"] = AnthropicProvider(anthropic_api_key, anthropic_base_url or ANTHROPIC_URL)
    if vllm_base_url:
        built["vllm"] = VllmProvider(vllm_base_url, vllm_api_key)
    if cohere_api_key or cohere_base_url:
        built["cohere"] = CohereProvider(cohere_api_key, cohere_base_url or COHERE_URL)
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
    """The batches of those of `providers` that have any; vLLM has none."""
    built: dict[ProviderName, BatchProvider] = {}
    if "openai" in providers:
        built["openai"] = OpenAIBatches(openai_api_key, openai_base_url or OPENAI_URL)
    if "anthropic" in providers:
        built["anthropic"] = AnthropicBatches(anthropic_api_key, anthropic_base_url or ANTHROPIC_URL)
    plain = providers.get("simulated")
    if isinstance(plain, SimulatedProvider) and simulated is not None:
        # One bill and one set of faults for both, as a provider has.
        store = SimulatedBatches(plain.bill, plain.faults, simulated, time.time)
        built["simulated"] = SimulatedBatchProvider(store, traits_of(simulated.turnaround_s))
    return built
