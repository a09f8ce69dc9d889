"""What a fault is, and how one is run: break things, drain, gather the evidence, hold it against the invariants."""

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .broker import Broker
from .gather import gather
from .invariants import Violation, books, content, key_of, unexplained, violations
from .stage import Stage

Play = Callable[["Scene"], None]


@dataclass(frozen=True, slots=True)
class Scene:
    """What a fault has to break."""

    stage: Stage
    broker: Broker | None
    """With a forwarder in front; None where the fault does not touch the broker."""

    @property
    def own_broker(self) -> Broker:
        assert self.broker is not None, "this fault breaks the broker: it needs one of its own"
        return self.broker


@dataclass(frozen=True, slots=True)
class Fault:
    """`play` asks and breaks; it returns when everything is asked and nothing is broken any more."""

    name: str
    play: Play
    check: Callable[[Scene], Iterable[str]] = lambda _: ()
    """What must hold besides the invariants; says what is wrong."""
    settings: Mapping[str, str] = field(default_factory=dict)
    latency_ms: int = 100
    batch_s: float = 0.0
    """How long the provider takes for a batch."""
    drain_s: float = 120.0
    """Within this every id has its response after the last fault."""
    breaks_broker: bool = False
    seeded: bool = False
    """Another seed is another run."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One line of the table. Money in pico-dollars."""

    fault: str
    seed: int
    requests: int
    lost: int
    duplicated: int
    """Responses that lie more than once on the topic: recognisable, they are equal."""
    twice: int
    """Calls of a flight beyond its first one, those left out whose answer was held back."""
    ambiguous: int
    """Attempts that stand in the ledger as possibly paid."""
    unexplained_pico: int
    drain_s: float
    violations: tuple[Violation, ...]


@contextmanager
def home(kept: Path | None, name: str) -> Iterator[Path]:
    """A folder for one run; under `kept` it stays."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield Path(tempfile.mkdtemp(prefix=f"{name}-", dir=kept))
        return
    with tempfile.TemporaryDirectory(prefix="faults-") as made:
        yield Path(made)


def run(fault: Fault, seed: int, brokers: str, broker: Broker | None, kept: Path | None = None) -> Outcome:
    """Raises AssertionError where the fault could not be provoked."""
    with home(kept, f"{fault.name}-{seed}".replace(":", "-").replace(" ", "-")) as folder:
        stage = Stage.create(brokers, folder, seed=seed, latency_ms=fault.latency_ms, batch_s=fault.batch_s, **fault.settings)
        try:
            scene = Scene(stage, broker)
            fault.play(scene)
            drained = stage.drain(fault.drain_s)
            stage.listen()
            own = [Violation("check", what) for what in fault.check(scene)]
            return judge(fault, seed, stage, drained, own)
        finally:
            stage.close()


def judge(fault: Fault, seed: int, stage: Stage, drained: float, own: Sequence[Violation]) -> Outcome:
    evidence = gather(stage)
    found = [*own, *violations(evidence)]
    if math.isinf(drained):
        found.append(Violation("drained", f"not every id had a response {fault.drain_s:.0f} s after the last fault"))
    kept = books(evidence)
    delivered = Counter((key_of(line), content(line)) for line in evidence.responses)
    # One that was held back for another model's answer was meant to be paid beside it.
    held = {attempt for attempt, record in kept.charged.items() if record.discarded}
    flights = Counter(
        kept.intents[line.attempt].flight for line in evidence.bill if line.attempt in kept.intents and line.attempt not in held
    )
    return Outcome(
        fault=fault.name,
        seed=seed,
        requests=len({a.key for a in evidence.asked}),
        lost=len({a.key for a in evidence.asked} - {key_of(line) for line in evidence.responses}),
        duplicated=sum(count - 1 for count in delivered.values()),
        twice=sum(count - 1 for count in flights.values()),
        ambiguous=len(kept.ambiguous),
        unexplained_pico=unexplained(evidence),
        drain_s=drained,
        violations=tuple(found),
    )
