"""Feedback meets what was served: in any order and however often, the same lessons.

Completion -> Served, where a router that learns chose the model; so is an answer that was held back for being none
Completion of a judge's reply -> Rated
Served + Rated -> LessonRow -> Lesson
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from ..schemas.costs import CostEvent
from ..schemas.feedback import FeedbackLine, LessonRow, Rated, Served
from ..schemas.ledger import Charged, Completion
from ..schemas.requests import Identity, Request
from . import vectors
from .errors import Rejected
from .grade_question import score_of
from .ports import Vector
from .prompt_features import prompt_features
from .respond import response_id
from .text import last_user_text
from .unwanted import WORTHLESS, refused

_LESSON, _ROUTER = b"l", b"r"


@dataclass(frozen=True, slots=True)
class Lesson:
    """One model's answer to one prompt, and what it was worth."""

    model: str
    score: float
    features: tuple[float, ...]
    embedding: Vector | None
    expected: float | None
    """Score that was foretold; None where the model was not the router's choice or nothing was known."""
    chance: float | None
    """How probable this choice was; None where it was not the router's."""
    costs: tuple[tuple[str, int], ...]
    at_ms: int
    judged: bool = False
    """A judge said so, and no user said anything."""


def read_feedback(raw: bytes, tenant: str, default_job: str, at_ms: int) -> Rated:
    """Raises `Rejected` where the bytes are no feedback."""
    try:
        line = FeedbackLine.model_validate_json(raw)
        return Rated(identity=Identity(tenant=tenant, job=line.job or default_job, custom_id=line.custom_id), score=line.score, at_ms=at_ms)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the record"
        raise Rejected(
            f'not feedback, nothing is learned from it: {where}: {first["msg"]}; give {{"custom_id": "...", "job": "...", "score": 0..1}}',
            code="invalid_feedback",
        ) from None


def line_of(rated: Rated) -> bytes:
    """The record of `feedback` that says this, whoever's default its job was."""
    return FeedbackLine(custom_id=rated.identity.custom_id, job=rated.identity.job, score=rated.score).model_dump_json().encode()


def event_of(rated: Rated) -> CostEvent:
    """Its row beside the costs: of several about one answer the last one stands, to the second."""
    who = rated.identity
    return CostEvent(event_id=response_id(who, "feedback"), version=rated.at_ms // 1000, kind="feedback", timestamp_ms=rated.at_ms,
                     request_id=who.custom_id, tenant_id=who.tenant, job=who.job, score=rated.score)  # fmt: skip


def served(record: Completion) -> Served | None:
    """What there is to learn from a paid answer; None where no router that learns chose its model."""
    if record.chosen is None:
        return None
    return Served(
        identity=record.request.identity,
        model=record.answer.model_used,
        chosen=record.chosen,
        features=_features(record.request),
        embedding=record.embedding,
        refused=refused(record.answer.body, record.answer.finish_reason),
        judged=record.judged,
        at_ms=record.at_ms,
    )


def declined(record: Charged) -> Served | None:
    """What there is to learn from an answer that was held back for being none, or not good enough; None where that is nothing, or no
    router that learns chose a model."""
    if record.chosen is None or (record.discarded not in WORTHLESS and record.judged is None):
        return None
    return Served(
        identity=record.request.identity,
        model=record.model,
        chosen=record.chosen,
        features=_features(record.request),
        embedding=record.embedding,
        refused=record.discarded in WORTHLESS,
        judged=record.judged,
        attempt=record.attempt,
        at_ms=record.at_ms,
    )


def graded(record: Completion) -> Rated | None:
    """What a judge's reply says of the answer that it was asked about; None where it says nothing."""
    score = score_of(record.answer.body)
    return None if score is None else Rated(identity=record.request.identity, score=score, source="judge", at_ms=record.at_ms)


def _features(request: Request) -> tuple[float, ...]:
    return tuple(round(value, 5) for value in prompt_features(last_user_text(request.body) or ""))


def merged(row: LessonRow | None, news: Served | Rated) -> LessonRow:
    """The later of two answers, the later of two opinions, users' and judges' apart: so order and repetition change nothing."""
    row = row or LessonRow()
    if isinstance(news, Served):
        known = row.served
        return row if known is not None and _age(known) >= _age(news) else row.model_copy(update={"served": news})
    if news.source == "judge":
        if row.judged is not None and (row.judged_ms, row.judged) >= (news.at_ms, news.score):
            return row
        return row.model_copy(update={"judged": news.score, "judged_ms": news.at_ms})
    if row.score is not None and (row.rated_ms, row.score) >= (news.at_ms, news.score):
        return row
    return row.model_copy(update={"score": news.score, "rated_ms": news.at_ms})


def _age(served: Served) -> tuple[int, str]:
    return served.at_ms, served.model_dump_json()


def lesson_of(row: LessonRow) -> Lesson | None:
    """None where the answer or the opinion of it is missing. Users know best, and no answer is worth nothing, whatever a judge says."""
    known = row.served
    if known is None:
        return None
    score = 0.0 if row.score is None and known.refused else row.score
    judged = score is None
    if judged:
        score = known.judged if row.judged is None else row.judged
    if score is None:
        return None
    own = known.model == known.chosen.model
    return Lesson(
        model=known.model,
        score=score,
        features=known.features,
        embedding=None if known.embedding is None else vectors.unpack(known.embedding),
        expected=known.chosen.expected if own else None,
        chance=known.chosen.chance if own else None,
        costs=known.chosen.costs,
        at_ms=known.at_ms,
        judged=judged,
    )


def row_key(identity: Identity, attempt: str = "") -> bytes:
    """`attempt`: of an answer that was not given; the one that was given is the request's."""
    return _LESSON + identity.key + attempt.encode()


def router_key(tenant: str) -> bytes:
    return _ROUTER + tenant.encode()


def kind_of(key: bytes) -> Literal["lesson", "router"]:
    return "lesson" if key[:1] == _LESSON else "router"


_SLACK, _ALARM = 0.1, 12.0


def drifting_since(lessons: Sequence[Lesson]) -> int | None:
    """Since when answers have been worth less than was foretold, by their time; None: nothing speaks for it. `lessons`: oldest first.

    A cumulative sum (Page 1954) of foretold less heard, less a slack of 0.1, alarms at 12: where answers are worth 0.4 less, after 40.
    Of users' words or of a judge's, whichever are more: what is foretold follows these, and one of the two may always be the stricter.
    """
    level, since = 0.0, 0
    mostly_judged = 2 * sum(lesson.judged for lesson in lessons) > len(lessons)
    for lesson in (lesson for lesson in lessons if lesson.judged is mostly_judged):
        if lesson.expected is None:
            continue
        if level <= 0.0:
            since = lesson.at_ms
        level = max(0.0, level + min(1.0, max(0.0, lesson.expected)) - lesson.score - _SLACK)
        if level > _ALARM:
            return since
    return None
