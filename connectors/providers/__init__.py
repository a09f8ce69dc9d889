"""Providers of answers: one file per protocol, the simulated one beside them, one conformance suite over all."""

from collections.abc import Callable

from ...pipeline.models import ProviderName
from ...pipeline.ports import Provider
from .accounts import Accounts
from .anthropic import ANTHROPIC_URL, AnthropicProvider
from .openai import OPENAI_URL, OpenAIProvider
from .simulated import SimulatedOptions, SimulatedProvider
from .vllm import VllmProvider


def build_providers(
    *,
    openai_api_key: str | None = None,
    openai_base_url: str | None = None,
    anthropic_api_key: str | None = None,
    anthropic_base_url: str | None = None,
    vllm_base_url: str | None = None,
    vllm_api_key: str | None = None,
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
    if simulated is not None or not built:
        built["simulated"] = SimulatedProvider(simulated)
    return built


def keys_in(setting: str | None) -> list[str]:
    """The keys of a setting that holds one or several."""
    return list(dict.fromkeys(key.strip() for key in (setting or "").split(",") if key.strip()))


def _by_keys(setting: str | None, make: Callable[[str | None], Provider]) -> Provider:
    accounts = [make(key) for key in keys_in(setting)]
    return Accounts(accounts) if len(accounts) > 1 else accounts[0] if accounts else make(None)
