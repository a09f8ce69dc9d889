"""What feedback taught the router, as bytes: on the topic `routers`, and in the file that `export-router` writes.

numpy arrays and a JSON header; no code is loaded with them.
"""

import io
import json
from typing import Any

import numpy as np

from ..pipeline.errors import Rejected
from ..pipeline.feedback_model import Basis, FeedbackModel
from ..pipeline.router_state import FLOORS
from ..pipeline.score_model import Scaling
from ..pipeline.taught_router import TAUGHT_VERSION, TaughtRouter


def pack_router(tenant: str, state: TaughtRouter) -> bytes:
    """A few hundred kilobytes for nine models."""
    header = told(tenant, state) | {"form": TAUGHT_VERSION, "floors": FLOORS}
    arrays: dict[str, Any] = {}
    if state.model is not None:
        model, basis = state.model, state.model.basis
        header |= {"size": basis.size, "embedded": basis.scaling.embedded, "strengths": model.strengths, "noise": model.noise}
        arrays = {"mean": basis.scaling.mean, "deviation": basis.scaling.deviation, "waves": basis.waves,
                  "weights": model.weights.astype(np.float16), "levels": model.levels}  # fmt: skip
    buffer = io.BytesIO()
    np.savez(buffer, header=np.array(json.dumps(header)), **arrays)
    return buffer.getvalue()


def told(tenant: str, state: TaughtRouter) -> dict[str, Any]:
    """For people and programs: all but the weights."""
    return {
        "tenant": tenant, "version": state.version, "status": state.status, "lessons": state.lessons, "since_ms": state.since_ms,
        "drifts": state.drifts, "note": state.note, "models": state.models, "heard": state.heard, "dropped": state.dropped,
        "means": [round(mean, 4) for mean in state.means], "prices": [None if price is None else str(price) for price in state.prices],
        "costs": state.costs,
    }  # fmt: skip


def unpack_router(raw: bytes) -> tuple[str, TaughtRouter]:
    """The tenant and what was learned for it. Raises `Rejected` where the bytes are something else, or of another version."""
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as file:
            arrays = dict(file)
        header = json.loads(str(arrays["header"]))
        if header["form"] != TAUGHT_VERSION or tuple(header["floors"]) != FLOORS:
            raise ValueError(f"its form is {header['form']}, this version reads {TAUGHT_VERSION}")
        model = _model(arrays, header) if "weights" in arrays else None
        state = TaughtRouter(
            version=int(header["version"]), status=header["status"], models=tuple(header["models"]), heard=tuple(header["heard"]),
            dropped=tuple(header["dropped"]), means=tuple(header["means"]), model=model,
            prices=tuple(None if price is None else float(price) for price in header["prices"]), lessons=int(header["lessons"]),
            since_ms=int(header["since_ms"]), drifts=int(header["drifts"]), note=header["note"],
            costs=tuple(map(float, header.get("costs", ()))),
        )  # fmt: skip
        return str(header["tenant"]), state
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise Rejected(f"this is not what a router was taught ({error}); it is learned again from the feedback that comes") from error


def _model(arrays: dict[str, Any], header: dict[str, Any]) -> FeedbackModel:
    own_level, shared, own = header["strengths"]
    basis = Basis(Scaling(arrays["mean"], arrays["deviation"], header["embedded"]), header["size"], arrays["waves"])
    return FeedbackModel(basis, arrays["weights"].astype(np.float32), arrays["levels"], (own_level, shared, own), header["noise"])
