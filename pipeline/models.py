"""The catalogue of models: one frozen table, read from `models.toml`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal

from .errors import Rejected

TierName = Literal["economy", "standard", "premium"]
PromptCache = Literal["none", "automatic", "keyed", "breakpoints", "cache_control"]
"""What a provider's prompt cache wants of us.

automatic      finds prefixes by itself: only the order of calls helps
keyed          the same, and takes a `prompt_cache_key` that brings calls to one machine (OpenAI until GPT-5.5)
breakpoints    caches what `prompt_cache_breakpoint` marks, and charges for writing (OpenAI since GPT-5.6)
cache_control  caches what `cache_control` marks, and charges for writing (Anthropic)
"""
Api = Literal["chat", "responses"]
"""Which of OpenAI's protocols a model is asked by."""
ProviderName = Literal["openai", "anthropic", "vllm", "cohere", "simulated"]


@dataclass(frozen=True, slots=True)
class Prices:
    """Given prices in USD per million tokens; they override the price table."""

    input: Decimal
    output: Decimal
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None
    cache_write_1h: Decimal | None = None
    cache_write_12h: Decimal | None = None
    batch_factor: Decimal = Decimal("0.5")
    """Price of a provider batch, relative to a plain call."""
    flex_factor: Decimal | None = None
    priority_factor: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """One model that this engine may call."""

    name: str
    """The name in this engine: what requests ask for."""
    provider: ProviderName
    provider_model: str
    """The provider's own name of it."""
    tier: TierName
    context_tokens: int
    max_output_tokens: int
    prices: Prices | None = None
    """None: by the price table of genai-prices."""
    enabled: bool = True
    quality: float = 0.5
    """The operator's prior, 0 to 1."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_in_flight: int = 2048
    supports_tools: bool = True
    supports_images: bool = False
    aliases: tuple[str, ...] = ()
    supports_sampling: bool = True
    """False where the provider refuses temperature and top_p other than the default."""
    supports_structured: bool = True
    """False where the model takes no JSON mode or schema as response_format."""
    image_tokens: int | None = None
    """The most input tokens that one image can cost; None: not known, so that images have no price cap."""
    auto: bool = True
    """May be chosen for a request that leaves the choice to this engine; otherwise it must be asked for by name."""
    price_as: ProviderName | None = None
    """Whose price table applies; None: the provider's own. Set where another provider stands in."""
    prompt_cache: PromptCache = "none"
    prompt_cache_min_tokens: int = 1024
    """Shorter prefixes are not cached."""
    cache_write_12h_factor: Decimal | None = None
    """Price of a token written for 12 hours, relative to the plain input price; for models priced by the price table, which does not know
    this kind of token."""
    languages: tuple[str, ...] = ()
    """That it answers well, as ISO 639-1 codes; empty: all."""
    region: str = ""
    """Where it answers, in the operator's words, e.g. `eu`; see `TENANT_REGIONS`."""
    why_disabled: str = ""
    api: Api = "chat"

    @property
    def priced_as(self) -> ProviderName:
        return self.price_as or self.provider


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All models by name and alias."""

    models: tuple[Model, ...]
    default_premium: str
    """The counterfactual of `auto`: what a careful user would have asked for."""
    stand_ins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Disabled models that may be asked for by name all the same -> the enabled ones that the operator named their equals."""
    _by_name: dict[str, Model] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        table: dict[str, Model] = {}
        for model in self.models:
            for name in (model.name, *model.aliases):
                if name in table:
                    raise ValueError(f"models.toml names {name!r} twice")
                table[name] = model
        object.__setattr__(self, "_by_name", table)
        if self.default_premium not in table:
            raise ValueError(f"default_premium {self.default_premium!r} is not a model of models.toml")

    def resolve(self, name: str) -> str:
        """The canonical name, or `auto`. Raises `Rejected` where the model is unknown, or disabled and no equal can stand in for it."""
        if name == "auto":
            return name
        model = self._by_name.get(name)
        return model.name if model is not None and model.name in self.stand_ins else self.get(name).name

    def get(self, name: str) -> Model:
        """Raises `Rejected` where the model is unknown or disabled."""
        model = self._by_name.get(name)
        if model is None:
            known = ", ".join(sorted(m.name for m in self.models if m.enabled))
            raise Rejected(f"unknown model {name!r}; models.toml has: {known}, or say 'auto'", code="unknown_model")
        if not model.enabled:
            why = model.why_disabled or "it is disabled in the settings"
            raise Rejected(f"model {model.name!r} can't be used: {why}", code="model_disabled")
        return model

    def counterfactual(self, requested: str) -> Model:
        """The model that the request would have been sent to without this engine, for pricing: it may be disabled here.

        Raises `Rejected` where the model is unknown.
        """
        return self.priced(self.default_premium if requested == "auto" else requested)

    def priced(self, name: str) -> Model:
        """The model, for pricing: it may be disabled here. Raises `Rejected` where it is unknown."""
        return self._by_name.get(name) or self.get(name)

    def simulated(self) -> "Catalogue":
        """The same models, priced as they are, and every one served by the simulated provider."""
        models = tuple(replace(m, provider="simulated", price_as=m.priced_as) for m in self.models)
        return Catalogue(models, self.default_premium)

    def for_providers(self, available: Iterable[ProviderName]) -> "Catalogue":
        """What can be asked where only these providers are set up.

        Only `simulated`: the `simulated()` catalogue. Otherwise models of other providers are disabled, and say why.
        """
        names = frozenset(available)
        if names == {"simulated"}:
            return self.simulated()
        return Catalogue(tuple(m if m.provider in names else _without_provider(m) for m in self.models), self.default_premium)

    def standing_in(self, equivalents: Mapping[str, Iterable[str]]) -> "Catalogue":
        """The same, with `stand_ins` from what the operator named equal, by name or alias."""
        found: dict[str, tuple[str, ...]] = {}
        for name, others in equivalents.items():
            model = self._by_name.get(name)
            able = tuple(m.name for other in others if (m := self._by_name.get(other)) is not None and m.enabled)
            if model is not None and not model.enabled and able:
                found[model.name] = able
        return replace(self, stand_ins=found)


def _without_provider(model: Model) -> Model:
    setting = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY", "vllm": "VLLM_BASE_URL", "cohere": "COHERE_API_KEY"}
    need = setting.get(model.provider)
    why = (
        f"its provider {model.provider} is not set up; set {need}"
        if need
        else "the simulated provider serves only where no real one is set up"
    )
    return replace(model, enabled=False, why_disabled=model.why_disabled or why)
