"""Workers that are killed while a model grades answers: as labels that nobody waits for, and before a cheap answer is given."""

from collections import Counter
from collections.abc import Iterator

from inference_engine.pipeline.grade_question import flight_of
from inference_engine.pipeline.respond import ANSWERING
from inference_engine.schemas import packets
from inference_engine.schemas.feedback import Rated
from inference_engine.schemas.ledger import Completion

from .evidence import Asked
from .play import Fault, Scene
from .stage import MODEL, TENANTS, Stage

GRADED = {
    "ROUTING_POLICY": "learned",
    "ROUTING_CASCADE": "judge",
    "ROUTING_JUDGE_MODEL": MODEL,
    "ROUTING_JUDGE_RATE": "1",
}
HARD = "Analyze, compare and prove the algorithm; explain the distributed protocol and its latency; write a detailed report"
MARKS = ("[[grade:9]]", "[[grade:2]]", "[[grade:none]]")


def ask_auto(stage: Stage, count: int) -> None:
    """Prompts that a cheap model gets anyhow, and prompts that it gets only if a judge likes its answer."""
    random = stage.random
    chosen = [
        Asked(
            tenant := random.choice(TENANTS),
            "faults",
            "",
            "auto",
            f"{stage.canary(tenant)} {random.choice(('why', HARD))} {random.randrange(10**9)} {random.choice(MARKS)}",
        )
        for _ in range(count)
    ]
    # So long may an answer be that a dear model costs more than a cheap one and its grade.
    stage.send(stage.again(chosen, priority=random.choice(("express", "standard")), body={"max_tokens": 3_000}))


def kills(scene: Scene) -> None:
    """Of three workers one is killed six times, and comes back at once."""
    stage = scene.stage
    stage.start_sink()
    stage.start_workers(3)

    def work() -> None:
        for _ in range(6):
            stage.kill_one(0.5, 3.0)

    stage.while_asking(work, ask=lambda: ask_auto(stage, 8))


def were_graded(scene: Scene) -> Iterator[str]:
    """Every answer that is due is graded, every grade is a lesson, and both ends of a cascade were reached."""
    stage, topics = scene.stage, scene.stage.engine.topics
    done = [p.member for p in stage.members(topics.ledger, packets.ledger) if isinstance(p.member, Completion)]
    purposes = Counter(record.purpose for record in done)
    yield from (
        f"no call of the purpose {purpose} was completed: {dict(purposes)}" for purpose in ("grade", "cascade") if not purposes[purpose]
    )
    answers = [record for record in done if record.purpose in ANSWERING and record.chosen is not None]
    if {record.judged is not None for record in answers} != {True, False}:
        yield "answers of cheap models were all given, or none was"
    graded = {record.flight for record in done if record.purpose == "grade"}
    yield from (
        f"the answer of {record.request.identity} was never graded"
        for record in answers
        if record.judged is None and flight_of(MODEL, record.flight) not in graded
    )
    rated = {p.member.identity for p in stage.members(topics.lessons, packets.lessons) if isinstance(p.member, Rated)}
    yield from (
        f"the grade of {record.request.identity} is no lesson"
        for record in done
        if record.purpose == "grade" and "[[grade:none]]" not in str(record.request.body) and record.request.identity not in rated
    )


GRADES = (Fault("random kills with a judge that grades", kills, were_graded, GRADED, latency_ms=300, seeded=True),)
