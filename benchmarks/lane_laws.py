"""Which law should move the batch lane's rate: a simulation of one event loop that all lanes share.

python benchmarks/lane_laws.py [--seconds 60] [--seed 0]

The loop serves one piece of work after the other. A request of the batch lane comes in four pieces (lookup, embedding and route, call,
answer), each in a packet of 8; an express request passes the loop 40 times on its way, a millisecond apart. The laws are those of
pipeline/lanes.py, in the very code that the worker runs; what they see is how late a probe of the loop is, every 10 ms.
"""

import argparse
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from support import percentile, print_table

from inference_engine.agents.throttle import CONTROL_S, PASSES, PROBE_S, SMALL_PACKET
from inference_engine.pipeline.lanes import LAWS, Bounds, Flow, GradientLaw, Law, advance, turn_of

PACKET = SMALL_PACKET
PIECES_MS = (0.2, 0.15, 0.35, 0.25)
"""Of one batch request: some 0.95 ms of the loop, as measured (docs/benchmarks.md, CPU by stage)."""
VISITS, VISIT_MS, GAP_MS = 40, 0.05, 1.0
EXPRESS_PER_S = 10


@dataclass(frozen=True)
class Scenario:
    """What the loop has to do beside."""

    name: str
    cost: Callable[[float], float]
    """By time in seconds: how dear a piece is, relative to `PIECES_MS`."""
    pause: Callable[[float], bool] = lambda _: False
    """Has the batch lane nothing to do?"""


SCENARIOS = (
    Scenario("steady", lambda _: 1.0),
    Scenario("twice as dear from the middle on", lambda s: 1.0 if s < 30 else 2.0),
    Scenario("jobs come and go every 5 s", lambda _: 1.0, lambda s: int(s / 5) % 2 == 0),
    Scenario("one packet in ten is ten times as dear", lambda _: 0.0),
)
CANDIDATES: tuple[tuple[str, Law, float], ...] = (
    ("fixed: as fast as it can", LAWS["fixed"], 0.1),
    ("multiplicative, alpha 0.1", LAWS["multiplicative"], 0.1),
    ("multiplicative, alpha 0.3", LAWS["multiplicative"], 0.3),
    ("gradient, alpha 0.1", LAWS["gradient"], 0.1),
    ("gradient, alpha 0.3", LAWS["gradient"], 0.3),
    ("gradient with steps of 1 %", GradientLaw(step=0.01), 0.3),
)


class Loop:
    """One event loop, in virtual time: pieces of work in the order in which they become due."""

    def __init__(self, scenario: Scenario, law: Law, alpha: float, target_ms: float, seconds: float, seed: int) -> None:
        self.scenario, self.law, self.alpha, self.target_ms, self.seconds = scenario, law, alpha, target_ms, seconds
        self.random = Random(seed)
        self.bounds = Bounds()
        self.flow = Flow(self.bounds.slowest)
        self.free_at = 0.0
        self.late: list[float] = []
        self.wanted = False
        self.express: list[float] = []
        self.unanswered: dict[int, float] = {}
        self.batch = 0
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = 0

    def at(self, when: float, what: Callable[[float], None]) -> None:
        self._number += 1
        heapq.heappush(self._due, (when, self._number, what))

    def work(self, due: float, ms: float) -> float:
        """When a piece that became due then is done."""
        self.free_at = max(self.free_at, due) + ms / 1000
        return self.free_at

    def run(self) -> None:
        self.at(0.0, self.probe)
        self.at(CONTROL_S, self.control)
        self.at(1.0, self.begin_packet)
        for when in self.arrivals():
            self.unanswered[len(self.unanswered)] = when
            self.at(when, self.express_visit(len(self.unanswered) - 1, when, VISITS))
        while self._due and self._due[0][0] < self.seconds:
            when, _, what = heapq.heappop(self._due)
            what(when)
        # At least so long.
        self.express += [1000 * (self.seconds - began) for began in self.unanswered.values()]

    def arrivals(self) -> Iterator[float]:
        when = 0.0
        while when < self.seconds - 5:
            when += self.random.expovariate(EXPRESS_PER_S)
            yield when

    def express_visit(self, name: int, began: float, left: int) -> Callable[[float], None]:
        def visit(due: float) -> None:
            done = self.work(due, VISIT_MS)
            if left > 1:
                self.at(done + GAP_MS / 1000, self.express_visit(name, began, left - 1))
            else:
                del self.unanswered[name]
                self.express.append(1000 * (done - began) - VISITS * (VISIT_MS + GAP_MS) + GAP_MS)

        return visit

    def probe(self, due: float) -> None:
        self.late.append(1000 * max(0.0, self.free_at - due))
        self.at(max(due, self.free_at) + PROBE_S, self.probe)

    def control(self, due: float) -> None:
        late = sum(self.late) / len(self.late) if self.late else 1000 * max(0.0, self.free_at - due)
        self.late.clear()
        self.flow = advance(
            self.flow, late, law=self.law, target_ms=self.target_ms, bounds=self.bounds, alpha=self.alpha, wanted=self.wanted
        )
        self.wanted = False
        self.at(max(due, self.free_at) + CONTROL_S, self.control)

    def begin_packet(self, due: float) -> None:
        if self.scenario.pause(due):
            self.at(due + 0.01, self.begin_packet)
            return
        if self.free_at > due + 2.0:  # what a worker takes in is bounded: beyond that the rest waits in Kafka
            self.at(self.free_at - 1.0, self.begin_packet)
            return
        self.wanted = True
        self.piece(0, self.dear(due))(due)
        turn = turn_of(self.flow.rate, self.bounds)
        self.at(due + PACKET / turn.size * turn.window_ms / 1000, self.begin_packet)

    def dear(self, due: float) -> float:
        cost = self.scenario.cost(due)
        return cost if cost else (10.0 if self.random.random() < 0.1 else 1.0)

    def piece(self, number: int, dear: float) -> Callable[[float], None]:
        def do(due: float) -> None:
            done = self.work(due, PACKET * PIECES_MS[number] * dear)
            if number + 1 < len(PIECES_MS):
                self.at(done + (0.1 if number == 2 else 0.005), self.piece(number + 1, dear))
            else:
                self.batch += PACKET

        return do


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target-ms", type=float, default=100, help="BATCH_TARGET_LATENCY_P95")
    given = parser.parse_args()
    rows = []
    for scenario in SCENARIOS:
        for name, law, alpha in CANDIDATES:
            loop = Loop(scenario, law, alpha, given.target_ms / PASSES, given.seconds, given.seed)
            loop.run()
            cells = [f"{percentile(loop.express, p):.0f}" for p in (50, 95, 99)]
            rows.append([f"{scenario.name}; {name}", *cells, f"{loop.batch / given.seconds:.0f}"])
    columns = ["scenario; law", "added to express p50, ms", "p95", "p99", "batch requests/s"]
    print_table(f"One loop, {EXPRESS_PER_S} express requests/s beside a batch job", columns, rows)


if __name__ == "__main__":
    main()
