"""Workers that are killed while answers are shared by a learned decision: audits and a judge's questions are payments, too."""

from collections import Counter
from collections.abc import Iterator

from inference_engine.schemas.ledger import Completion, Intent

from .evidence import Asked
from .gather import gather
from .play import Fault, Scene
from .stage import MODEL, TENANTS, Stage

LEARNED = {
    "CACHE_SEMANTIC_ENABLED": "true",
    "CACHE_POLICY": "learned",
    "CACHE_ERROR_BOUND": "0.2",
    "CACHE_AUDIT_RATE": "0.5",
    "CACHE_JUDGE_MODEL": MODEL,
}
SUBJECTS = {
    "card": "my credit card was stolen from the gym locker this morning while swimming",
    "fee": "why does a transfer abroad cost such an enormous fee with your bank",
    "parcel": "that parcel containing our new phone should have arrived last week already",
}
BEGINNINGS = ("hello", "hi", "morning", "excuse me", "dear team", "please", "sorry", "listen", "hey", "well")
ENDINGS = ("help", "thanks", "what now", "any advice", "tell me", "answer soon", "quickly", "urgent", "cheers", "regards")
OPEN = 0.25
"""Share of the questions whose answers are free text and differ each time: those are a judge's to compare, in a scope of their own."""
WAVE, WAVES = 20, 22


def ask_alike(stage: Stage, count: int) -> None:
    """Questions that mean one of a few things, in ever new words."""
    chosen, random = list[Asked](), stage.random
    opened: list[Asked] = []
    for _ in range(count):
        tenant, subject = random.choice(TENANTS), random.choice(sorted(SUBJECTS))
        words = f"{stage.canary(tenant)} {random.choice(BEGINNINGS)} {SUBJECTS[subject]} {random.choice(ENDINGS)}"
        if random.random() < OPEN:
            opened.append(Asked(tenant, "faults", "", MODEL, words))
        else:
            chosen.append(Asked(tenant, "faults", "", MODEL, f"{words} [[answer:{subject}]]"))
    stage.send(stage.again(chosen, priority="standard"))
    stage.send(stage.again(opened, priority="standard", body={"temperature": 0.5}))


def audits_and_kills(scene: Scene) -> None:
    """Three workers learn to share; then each of six times one of them is killed, and comes back at once."""
    stage = scene.stage
    stage.start_sink()
    stage.start_workers(3, FAULT_INDEX="hash")
    for _ in range(WAVES):
        ask_alike(stage, WAVE)
        stage.wait_for(len(stage.asked))

    def work() -> None:
        for _ in range(6):
            stage.kill_one(0.5, 3.0, FAULT_INDEX="hash")

    stage.while_asking(work, ask=lambda: ask_alike(stage, 16))


def were_paid_for(scene: Scene) -> Iterator[str]:
    """Nothing is shown where nothing was audited, judged and shared."""
    evidence = gather(scene.stage)
    intended = Counter(p.member.purpose for p in evidence.ledger if isinstance(p.member, Intent))
    done = Counter(p.member.purpose for p in evidence.ledger if isinstance(p.member, Completion))
    yield from (
        f"no call of the purpose {purpose} was completed: {dict(done)}" for purpose in ("answer", "audit", "judge") if not done[purpose]
    )
    if not any(line.engine.cache.tier in ("semantic", "coalesced") for line in evidence.responses):
        yield f"no answer was shared by similarity: {dict(intended)}"
    kinds = Counter(row.kind for row in evidence.stored or ())
    booked = kinds["judge"]
    if booked != (
        made := len({p.member.attempt for p in evidence.ledger if isinstance(p.member, Completion) and p.member.purpose == "judge"})
    ):
        yield f"the cost store has {booked} rows of a judge, the ledger {made}"


AUDITS = (Fault("random kills with audits and a judge", audits_and_kills, were_paid_for, LEARNED, latency_ms=400, seeded=True),)
