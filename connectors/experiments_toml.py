"""Reads the experiments of EXPERIMENTS_FILE.

[cheaper-support]
unit = "user"                     # or "request"
share = 0.5                       # of the units that take part; default: all
tenants = ["acme"]                # default: all
features = ["support"]            # by feature_name; default: all
variants = [
    { name = "as-now", weight = 3 },
    { name = "small", model = "gpt-4o-mini" },
    { name = "learned", policy = "learned", cascade = "agreement" },
]
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..pipeline.errors import ConfigError, Rejected
from ..pipeline.experiments import NO_EXPERIMENTS, Experiment, Experiments, PolicyName, Unit, Variant
from ..pipeline.models import Catalogue
from ..schemas.requests import MAX_NAME, Cascade

_Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Variant(_Strict):
    name: _Name
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    policy: PolicyName | None = None
    model: _Name | None = None
    cascade: Cascade | None = None


class _Experiment(_Strict):
    unit: Unit = "request"
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    tenants: list[_Name] = []
    features: list[_Name] = []
    variants: list[_Variant]


_FILE: TypeAdapter[dict[_Name, _Experiment]] = TypeAdapter(dict[_Name, _Experiment])


def load_experiments(path: Path | None, catalogue: Catalogue) -> Experiments:
    """None: no experiments. Models under their canonical names. Raises `ConfigError` with what to change."""
    if path is None:
        return NO_EXPERIMENTS
    try:
        parsed: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
        entries = _FILE.validate_python(parsed)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the experiments file {path} can't be read ({error}); correct the path or remove EXPERIMENTS_FILE") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the experiments file {path} is not valid TOML: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"the experiments file {path}: {where}: {first['msg']}") from None
    return Experiments(tuple(_experiment(name, entry, catalogue, path) for name, entry in entries.items()))


def _experiment(name: str, entry: _Experiment, catalogue: Catalogue, path: Path) -> Experiment:
    try:
        variants = tuple(
            Variant(v.name, v.weight, v.policy, None if v.model is None else catalogue.priced(v.model).name, v.cascade)
            for v in entry.variants
        )
        return Experiment(name, variants, entry.unit, entry.share, frozenset(entry.tenants), frozenset(entry.features))
    except (Rejected, ValueError) as error:
        raise ConfigError(f"the experiments file {path}: experiment {name!r}: {error}") from None
