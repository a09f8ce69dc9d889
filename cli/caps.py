"""The most that a row can cost, for `--max-cost`. Pure, given the catalogue and the day."""

from datetime import date

from ..pipeline.billing import cap
from ..pipeline.errors import Rejected, Unpriced
from ..pipeline.models import Catalogue
from .job import CapOf
from .rows import Row


def caps(catalogue: Catalogue, day: date) -> CapOf:
    """For `auto` the dearest model that could be chosen; models without a price never are.

    The function raises `Rejected` for an unknown model and `Unpriced` for a row whose cost has no bound.
    """
    enabled = [model for model in catalogue.models if model.enabled]

    def of(row: Row) -> int:
        name = row.body.get("model")
        if not isinstance(name, str):
            raise Rejected("body.model must be a string", code="invalid_request")
        resolved = catalogue.resolve(name)
        if resolved != "auto":
            # Any of those that stand in for a disabled model may answer.
            return max(cap(catalogue.get(other), row.body, day) for other in catalogue.stand_ins.get(resolved, (resolved,)))
        found: list[int] = []
        why = "no model is enabled"
        preferred = row.engine.get("preferred_model")
        chosen = catalogue.get(preferred).name if isinstance(preferred, str) else None
        for model in enabled:
            if not model.auto and model.name != chosen:
                continue
            try:
                found.append(cap(model, row.body, day))
            except Unpriced as error:
                why = str(error)
        if not found:
            raise Unpriced(why)
        return max(found)

    return of
