"""Reads the catalogue of models: the built-in `models.toml`, and the user's own merged over it field by field."""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from ..pipeline.errors import ConfigError
from ..pipeline.models import Api, Catalogue, Model, Prices, PromptCache, ProviderName, TierName

Table = dict[str, Any]

_TOP = ("include_defaults", "default_premium", "models")


def load_catalogue(path: Path | None = None, switches: Mapping[str, bool] | None = None) -> Catalogue:
    """The catalogue of the built-in file, the file at `path` if given, and the settings MODELS_<SWITCH>_ENABLED.

    `switches` maps the middle of such a setting (`GPT4`, in any case) to its value: a switch named in the file, or the
    name of one model written without punctuation, which wins over a switch. Raises `ConfigError` with what to change.
    """
    tables = _read(files(__package__).joinpath("models.toml").read_text("utf-8"), "the built-in models.toml")
    if path is not None:
        tables = _merge(tables, _read(_text(path), str(path)), str(path))
    source = str(path) if path is not None else "the built-in models.toml"
    entries = {name: _entry(name, table, source) for name, table in tables["models"].items()}
    if not entries:
        raise ConfigError(f"{source} leaves no model at all; give at least one under [models.NAME]")
    models = _switched(entries, switches or {})
    default = tables.get("default_premium")
    if default is None:
        raise ConfigError(f"{source} must name default_premium: the model that requests for 'auto' are compared with")
    try:
        return Catalogue(models, _string("default_premium", default, source))
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the models file {path} can't be read ({error}); correct the path or remove the setting") from None


def _read(text: str, source: str) -> Table:
    try:
        parsed = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from None
    _known(parsed, _TOP, source, "")
    models = parsed.setdefault("models", {})
    if not isinstance(models, dict) or not all(isinstance(t, dict) for t in models.values()):
        raise ConfigError(f"{source}: models are tables, [models.NAME]")
    for name, table in models.items():
        _known(table, _PARSERS, source, f"model {name!r}: ")
    return parsed


def _merge(default: Table, own: Table, source: str) -> Table:
    include = _boolean("include_defaults", own.get("include_defaults", True), source)
    models: Table = dict(default["models"]) if include else {}
    for name, table in own["models"].items():
        models[name] = {**models.get(name, {}), **table}
    premium = own.get("default_premium", default.get("default_premium") if include else None)
    return {"models": models, "default_premium": premium}


def _known(table: Mapping[str, Any], allowed: Iterable[str], source: str, where: str) -> None:
    names = list(allowed)
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(names))}"
            raise ConfigError(f"{source}: {where}unknown key {key!r}; {hint}")


# --- one model -------------------------------------------------------------------------------------------------------


def _entry(name: str, table: Table, source: str) -> tuple[Model, tuple[str, ...]]:
    where = f"{source}: model {name!r}"
    for key in ("provider", "tier", "context_tokens", "max_output_tokens"):
        if key not in table:
            raise ConfigError(f"{where} has no {key!r}, which every model needs")
    values = {key: _PARSERS[key](key, value, where) for key, value in table.items()}
    switches = values.pop("switches", ())
    values.setdefault("provider_model", name)
    if values.get("api") == "responses" and values["provider"] not in ("openai", "vllm"):
        raise ConfigError(f'{where}: api = "responses" is a protocol of OpenAI\'s; models of {values["provider"]} are asked by their own')
    if values["provider"] == "vllm":
        values["prices"] = _own_server(values.get("prices"), where)
    return Model(name=name, **values), switches


def _own_server(prices: Prices | None, where: str) -> Prices:
    if prices is None:
        raise ConfigError(f"{where} is served by your own server, so its prices must be given, e.g. prices = {{ input = 0, output = 0 }}")
    if prices.cache_read is not None:
        return prices
    # A server of one's own charges for a cached token what the operator says, and otherwise what any token costs.
    return replace(prices, cache_read=prices.input)


def _string(key: str, value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where}: {key} is a text, not {value!r}")
    return value


def _strings(key: str, value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{where}: {key} is a list of texts, not {value!r}")
    return tuple(_string(key, v, where) for v in value)


def _languages(key: str, value: Any, where: str) -> tuple[str, ...]:
    codes = _strings(key, value, where)
    wrong = [code for code in codes if not re.fullmatch("[a-z]{2,3}", code)]
    if wrong:
        raise ConfigError(f'{where}: {key} are codes like "en" or "de", not {wrong[0]!r}')
    return codes


def _boolean(key: str, value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: {key} is true or false, not {value!r}")
    return value


def _count(key: str, value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{where}: {key} is a whole number above 0, not {value!r}")
    return value


def _share(key: str, value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)) or not 0 <= value <= 1:
        raise ConfigError(f"{where}: {key} is between 0 and 1, not {value!r}")
    return float(value)


def _one_of(choices: tuple[str, ...]) -> Callable[[str, Any, str], str]:
    def parse(key: str, value: Any, where: str) -> str:
        if value not in choices:
            raise ConfigError(f"{where}: {key} is one of {', '.join(choices)}, not {value!r}")
        return str(value)

    return parse


def _price(key: str, value: Any, where: str) -> Decimal:
    if isinstance(value, str):
        try:
            value = Decimal(value)
        except ArithmeticError:
            raise ConfigError(f"{where}: price {key} is a number, not {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise ConfigError(f"{where}: price {key} is USD per million tokens, not {value!r}")
    price = Decimal(value)
    if not price.is_finite() or price < 0 or price.scaleb(6) != int(price.scaleb(6)):
        raise ConfigError(f"{where}: price {key} = {value} can't be billed exactly; not negative, at most 6 decimals")
    return price


def _prices(key: str, value: Any, where: str) -> Prices:
    names = [f.name for f in fields(Prices)]
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {key} is a table such as {{ input = 0.1, output = 0.4 }}, not {value!r}")
    _known(value, names, where, "prices: ")
    for needed in ("input", "output"):
        if needed not in value:
            raise ConfigError(f"{where}: prices have no {needed!r}")
    return Prices(**{name: _price(name, price, where) for name, price in value.items()})


_PARSERS: dict[str, Callable[[str, Any, str], Any]] = {
    "provider": _one_of(get_args(ProviderName)),
    "provider_model": _string,
    "tier": _one_of(get_args(TierName)),
    "context_tokens": _count,
    "max_output_tokens": _count,
    "prices": _prices,
    "enabled": _boolean,
    "quality": _share,
    "requests_per_minute": _count,
    "tokens_per_minute": _count,
    "max_in_flight": _count,
    "supports_tools": _boolean,
    "supports_images": _boolean,
    "supports_sampling": _boolean,
    "supports_structured": _boolean,
    "image_tokens": _count,
    "prompt_cache": _one_of(get_args(PromptCache)),
    "prompt_cache_min_tokens": _count,
    "cache_write_12h_factor": _price,
    "auto": _boolean,
    "region": _string,
    "languages": _languages,
    "api": _one_of(get_args(Api)),
    "aliases": _strings,
    "switches": _strings,
}


# --- the settings MODELS_<SWITCH>_ENABLED ------------------------------------------------------------------------------


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _switched(entries: Mapping[str, tuple[Model, tuple[str, ...]]], switches: Mapping[str, bool]) -> tuple[Model, ...]:
    wanted = {_plain(name): value for name, value in switches.items()}
    families = {_plain(s) for _, group in entries.values() for s in group}
    names = {_plain(n) for model, _ in entries.values() for n in (model.name, *model.aliases)}
    for name in wanted:
        if name not in families | names:
            near = difflib.get_close_matches(name, sorted(families | names), 1, 0.5)
            hint = f"did you mean MODELS_{near[0].upper()}_ENABLED? " if near else ""
            raise ConfigError(
                f"MODELS_{name.upper()}_ENABLED names no model; {hint}Switches are {', '.join(sorted(families))}, or a model's name"
            )
    return tuple(_switch(model, group, wanted) for model, group in entries.values())


def _switch(model: Model, group: tuple[str, ...], wanted: Mapping[str, bool]) -> Model:
    for name in (*(_plain(n) for n in (model.name, *model.aliases)), *(_plain(s) for s in group)):
        if name in wanted:
            why = "" if wanted[name] else f"MODELS_{name.upper()}_ENABLED is false"
            return replace(model, enabled=wanted[name], why_disabled=why)
    return model
