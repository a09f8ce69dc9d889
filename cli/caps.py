"""The most that a row can cost, for `--max-cost`. Pure, given the catalogue and the day."""

from datetime import date

from ..pipeline.billing import cap
from ..pipeline.errors import Rejected, Unpriced
from ..pipeline.models import Catalogue
from .budget import MICRO
from .job import CapsOf
from .rows import Row


def caps(catalogue: Catalogue, day: date) -> CapsOf:
    """For `auto` of each model that could be chosen; models without a price never are. Rounded up to what an index remembers.

    The function raises `Rejected` for an unknown model and `Unpriced` for a row whose cost has no bound.
    """
    enabled = [model for model in catalogue.models if model.enabled]

    def of(row: Row) -> tuple[int, ...]:
        name = row.body.get("model")
        if not isinstance(name, str):
            raise Rejected("body.model must be a string", code="invalid_request")
        resolved = catalogue.resolve(name)
        if resolved != "auto":
            # Any of those that stand in for a disabled model may answer.
            answering = catalogue.stand_ins.get(resolved, (resolved,))
            return tuple(sorted({_rounded_up(cap(catalogue.get(other), row.body, day)) for other in answering}))
        found: set[int] = set()
        why = "no model is enabled"
        preferred = row.engine.get("preferred_model")
        chosen = catalogue.get(preferred).name if isinstance(preferred, str) else None
        for model in enabled:
            if not model.auto and model.name != chosen:
                continue
            try:
                found.add(_rounded_up(cap(model, row.body, day)))
            except Unpriced as error:
                why = str(error)
        if not found:
            raise Unpriced(why)
        return tuple(sorted(found))

    return of


def _rounded_up(pico: int) -> int:
    return -(-pico // MICRO) * MICRO
