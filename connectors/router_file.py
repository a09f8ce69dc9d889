"""The learned router's state as one file: numpy arrays and a JSON header; no code is loaded with it."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..pipeline.errors import ConfigError
from ..pipeline.router_state import FLOORS, STATE_VERSION, RouterState
from ..pipeline.score_model import Kernel, Ridge, Scaling, ScoreModel
from .state_file import write_atomically

ROUTER_FILE = "router.npz"


def save_router(path: Path, state: RouterState) -> None:
    """Whole or not at all. Raises OSError."""
    arrays: dict[str, Any] = {}
    header = {
        "version": STATE_VERSION, "models": state.models, "floors": FLOORS, "static": state.static, "rows": state.rows, "note": state.note,
        "costs": state.costs,
        "prices": [None if price is None else str(price) for price in state.prices],
        "weights": {name: model.weights for name, model in _models(state).items()},
    }  # fmt: skip
    for name, model in _models(state).items():
        arrays |= {f"{name}.{key}": value for key, value in _arrays(model).items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, header=np.array(json.dumps(header)), **arrays)
    write_atomically(path, buffer.getvalue())


def load_router(path: Path) -> RouterState | None:
    """None where there is no such file. Raises `ConfigError` where it can't be used."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        header = json.loads(str(arrays["header"]))
        if header["version"] != STATE_VERSION or tuple(header["floors"]) != FLOORS:
            raise ConfigError(
                f"{path} was written by another version of this engine (its form is {header['version']}, this one reads {STATE_VERSION}); "
                "run `inference-engine bootstrap-router` again, or remove it to route without what it holds"
            )
        plain = _model(arrays, "plain", header["weights"])
        return RouterState(
            models=tuple(header["models"]),
            embedded=_model(arrays, "embedded", header["weights"]) if "embedded" in header["weights"] else None,
            plain=plain,
            prices=tuple(None if price is None else float(price) for price in header["prices"]),
            static=header["static"],
            rows=header["rows"],
            note=header["note"],
            costs=tuple(map(float, header.get("costs", ()))),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} can't be read as the state of a router ({error}); run `inference-engine bootstrap-router` again, or remove the file"
        ) from error


def _models(state: RouterState) -> Mapping[str, ScoreModel]:
    return {"plain": state.plain} | ({} if state.embedded is None else {"embedded": state.embedded})


def _arrays(model: ScoreModel) -> dict[str, Any]:
    made: dict[str, Any] = {"mean": model.scaling.mean, "deviation": model.scaling.deviation, "means": model.means}
    if model.kernel is not None and model.linear is not None and model.smooth is not None:
        made["landmarks"] = model.kernel.landmarks.astype(np.float32)  # half the size; a prediction differs in its sixth digit
        for name, ridge in (("linear", model.linear), ("smooth", model.smooth)):
            made |= {f"{name}.mean": ridge.mean, f"{name}.coefficients": ridge.coefficients, f"{name}.intercept": ridge.intercept}
    return made


def _model(arrays: Mapping[str, Any], name: str, weights: Mapping[str, Any]) -> ScoreModel:
    own = {key.removeprefix(f"{name}."): value for key, value in arrays.items() if key.startswith(f"{name}.")}
    scaling = Scaling(own["mean"], own["deviation"], embedded=name == "embedded")
    first, second = weights[name]
    if "landmarks" not in own:
        return ScoreModel(scaling, None, None, None, (first, second), own["means"])
    linear, smooth = (Ridge(own[f"{r}.mean"], own[f"{r}.coefficients"], own[f"{r}.intercept"]) for r in ("linear", "smooth"))
    kernel = Kernel(own["landmarks"].astype(np.float64))
    return ScoreModel(scaling, kernel, linear, smooth, (first, second), own["means"])
