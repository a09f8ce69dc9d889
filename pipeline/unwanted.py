"""Paid answers that are not given where another model may do better: refusals, cut off ones, cheap ones that fail a check."""

from typing import Literal

from ..schemas.record import JsonObject
from .models import Model
from .text import reply_message

FallBack = Literal["auto", "all", "never"]
"""For whom the next model is asked: requests that leave the choice to the engine, all whose route has one, nobody."""
Why = Literal["refusal", "cut_off", "structure", "agreement", "judge"]
"""The last three: of a cascade, whose cheaper answers are checked before one is given."""
OF_A_CASCADE = frozenset({"structure", "agreement", "judge"})
WORTHLESS = frozenset({"refusal", "cut_off", "structure"})
"""What these say of the answer itself; one that waits for another to agree with may be good, and of one that was graded the grade tells."""

REFUSALS = frozenset({"content_filter", "refusal"})
"""Finish reasons of answers that are none."""

SAID: dict[str, str] = {
    "refusal": "the model refused to answer",
    "cut_off": "the answer was cut off at the most that the model can write",
    "structure": "the answer has not the form that the request asks for",
    "agreement": "no other cheap model had given the same answer",
    "judge": "the judge did not find the answer good enough, or did not say",
}


def refused(body: JsonObject, finish_reason: str) -> bool:
    """The model, or its provider's filter, declined to answer."""
    return finish_reason in REFUSALS or bool(reply_message(body).get("refusal"))


def why_unwanted(asked: JsonObject, body: JsonObject, finish_reason: str) -> Why | None:
    """Of an answer `body` to a request `asked`; None: it is given.

    An answer that ends at the request's own limit is what was asked for: another model would end there, too. So is one of several choices,
    of which the others may be whole.
    """
    if isinstance(body.get("choices"), list) and len(body["choices"]) > 1:
        return None
    if refused(body, finish_reason):
        return "refusal"
    limited = asked.get("max_completion_tokens") or asked.get("max_tokens")
    return "cut_off" if finish_reason == "length" and not limited else None


def may_do_better(why: str, model: Model, other: Model) -> bool:
    """Whether asking the other one can help."""
    return other.name != model.name and (why != "cut_off" or other.max_output_tokens > model.max_output_tokens)
