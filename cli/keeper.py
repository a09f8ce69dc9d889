"""While a `run` waits for answers of the stack on this machine: who died under it is started again, a few times."""

import time
from dataclasses import dataclass, field

from ..connectors.process import created_at, same_start, tail
from ..pipeline.errors import Unavailable
from . import children
from .children import SINK, worker_name
from .stack import Say, StackOptions, ensure

EVERY_S = 2.0
MOST_RESTARTS = 3


@dataclass(slots=True)
class Keeper:
    """Looks after what this run's own engine consists of. What another command stopped is no death: it is not in the record any more."""

    options: StackOptions
    say: Say
    restarts: int = 0
    _looked: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Cheap. Raises `Unavailable` where something died too often, `ConfigError` where it does not start again."""
        now = time.monotonic()
        if now - self._looked < EVERY_S:
            return
        dead = self._dead()
        if dead:
            self._start_again(dead)
        self._looked = time.monotonic()

    def _dead(self) -> list[str]:
        known = children.births(self.options.folder)
        names = (SINK, *map(worker_name, range(self.options.workers)))
        return [name for name in names if name in known and not same_start(created_at(known[name].pid), known[name].created)]

    def _start_again(self, dead: list[str]) -> None:
        names = " and ".join(dead)
        if self.restarts >= MOST_RESTARTS:
            log = self.options.folder.log_file(dead[0])
            raise Unavailable(
                f"{names} ended again, after {MOST_RESTARTS} restarts in this run: the job stops here. Nothing is lost and nothing is paid "
                f"twice: the same command goes on. The end of {log}:\n{tail(log)}"
            )
        self.restarts += 1
        self.say(f"{names} ended in the middle of the job ({self.restarts} of {MOST_RESTARTS} times that it is started again)")
        ensure(self.options, self.say)
