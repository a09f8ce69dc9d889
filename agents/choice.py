"""Which model a call is made with next, and at which of its tiers."""

from collections.abc import Callable

from ..pipeline.errors import EngineError, Rejected, Unavailable, Unpriced
from ..pipeline.models import Model
from ..pipeline.provider_batch import FLEX_TRIES, choose
from ..schemas.record import Lane
from ..schemas.requests import Call
from .attempt import CallParts


class Choice:
    """One call on its way along its route. Decides by what was tried, who is well, and the time that is left."""

    def __init__(self, parts: CallParts, call: Call, lane: Lane) -> None:
        self._p = parts
        self._call = call
        self._lane = lane
        self._index = 0
        self.tries = 0
        """Of the present model, that came to nothing; those that were turned away at the flex tier not among them."""
        self.failures = 0
        """Of these, those that were not only told to come later."""
        self.flex_tries = 0
        """Of the present model at the flex tier, that came to nothing."""
        self.error: EngineError | None = None
        """Why there is no answer yet."""

    def candidate(self) -> tuple[Model, int] | None:
        """The model to try next and the most that it can cost; None where none is left."""
        while self._index < len(self._call.route.models):
            try:
                first = self._offer(self._index)
            except (Rejected, Unpriced) as error:
                self.next_model(error)
                continue
            return self._instead(first) if self._p.limits.rests(first[0]) else first
        return None

    def next_model(self, error: EngineError) -> None:
        """The present one can't serve the request."""
        self.error = error
        self._go_to(self._index + 1)

    def to_one_that_is_well(self) -> bool:
        """Leaves the present model for the next one that is well; False where there is none."""
        later = self._later()
        if later is None:
            return False
        self._go_to(later)
        return True

    def next_that(self, fits: Callable[[Model], bool]) -> tuple[Model, int] | None:
        """The next model of the route that is well and fits, and the most that it can cost; the present one stays."""
        index = self._later(fits)
        return None if index is None else self._offer(index)

    def leave(self, name: str, fits: Callable[[Model], bool], error: EngineError) -> None:
        """For the next model behind it that is well and fits; where there is none any more for the one behind it."""
        self.error, models = error, self._call.route.models
        if name in models:
            self._index = max(self._index, models.index(name))
        index = self._later(fits)
        self._go_to(self._index + 1 if index is None else index)

    def _go_to(self, index: int) -> None:
        self._index, self.tries, self.failures, self.flex_tries = index, 0, 0, 0

    def tier(self, model: Model) -> str:
        """The tier to ask for: what has time is asked for at the cheaper one."""
        request, prices = self._call.request, self._p.prices
        if prices is None or request.deadline_ms is None or self.flex_tries >= FLEX_TRIES:
            return "standard"
        left_s = (request.deadline_ms - self._p.now()) / 1000
        way = choose(left_s=left_s, lane=self._lane, prices=prices(model, request.body), traits=None)
        return "flex" if way == "flex" else "standard"

    def _offer(self, index: int) -> tuple[Model, int]:
        """A model of the route and the most that it can cost. Raises `Rejected`, `Unpriced`."""
        model = self._p.catalogue.get(self._call.route.models[index])
        if model.provider not in self._p.providers:
            raise Rejected(f"no provider {model.provider} is set up for model {model.name!r}", code="no_provider")
        return model, self._p.cap(model, self._call.request.body)

    def _instead(self, resting: tuple[Model, int]) -> tuple[Model, int]:
        """The next model of the route that is well; the resting one itself where there is none, to wait for it."""
        later = self._later()
        if later is not None:
            return self._offer(later)
        self.error = self.error or Unavailable(f"{resting[0].name} is not asked for a while: it failed several times in a row")
        return resting

    def _later(self, fits: Callable[[Model], bool] = lambda _: True) -> int | None:
        """Where in the route the next model stands that can take the request, is well and fits."""
        for index in range(self._index + 1, len(self._call.route.models)):
            try:
                model, _ = self._offer(index)
            except (Rejected, Unpriced):
                continue
            if not self._p.limits.rests(model) and fits(model):
                return index
        return None
