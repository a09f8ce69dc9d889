"""Errors, named for what they mean for the request.

EngineError
+-- Rejected          never will succeed as it is: error response (and a dead letter, where it could not be parsed)
+-- Unavailable       nothing was billed, try again, not before `retry_after` seconds
+-- Ambiguous         it may have been billed: book it at its cap
+-- Charged           it was billed and gave nothing usable
+-- OverBudget        stop: the next attempt could exceed the cap
+-- Unpriced          a model, tier or usage field without a known price: stop paying
+-- ConfigError       the settings or the installation are wrong: exit with the message
+-- StoreFailed       what is kept on the local disk can't be written: exit; the topics have all of it
+-- Stalled           the worker gets nowhere: exit, so that others take over
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands that only print an error need not wait for the records
    from collections.abc import Sequence

    from ..schemas.answers import Usage
    from .rates import RateSeen


class EngineError(Exception):
    """Base of all; `code` is stable and machine-readable."""

    code = "engine_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class Rejected(EngineError):
    """Asking again would be refused again."""

    code = "rejected"


class Unavailable(EngineError):
    """Certainly not billed; worth another try."""

    code = "unavailable"

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        code: str | None = None,
        rate_limited: bool = False,
        rates: "Sequence[RateSeen]" = (),
    ) -> None:
        """`rate_limited`: the provider is well, and was asked too fast. `rates`: what its reply says about its limits."""
        super().__init__(message, code=code)
        self.retry_after = retry_after
        self.rate_limited = rate_limited
        self.rates = rates


class Ambiguous(EngineError):
    """Sent, and no complete answer came back: it may have been billed."""

    code = "ambiguous"


class Charged(EngineError):
    """Billed according to `usage` and `service_tier`, which the reply names, and the answer can't be used."""

    code = "charged"

    def __init__(self, message: str, *, usage: "Usage", service_tier: str, request_id: str = "", code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.usage = usage
        self.service_tier = service_tier
        self.request_id = request_id


class OverBudget(EngineError):
    """The next attempt could cost more than is left."""

    code = "over_budget"


class Unpriced(EngineError):
    """No price is known; never guessed."""

    code = "unpriced"


class ConfigError(EngineError):
    """The settings or the installation are wrong; the message says what to do."""

    code = "config_error"


class StoreFailed(EngineError):
    """The local disk refuses a write (it is full, or broken): the worker ends, nothing is lost."""

    code = "store_failed"


class Stalled(EngineError):
    """This worker makes no progress, and nobody outside is to blame."""

    code = "stalled"


class Stale(EngineError):
    """This worker no longer owns the partition: stop, write nothing more for it, acknowledge nothing."""

    code = "stale"


class Fenced(Stale):
    """Another worker took the partition over: what was not committed by then never becomes visible."""

    code = "fenced"
