"""The learners of this worker's partitions: read from their table when they are first asked for, written when they have changed."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import orjson
import structlog

from ..pipeline.errors import Stale
from ..pipeline.learned import Learner
from ..pipeline.learned_settings import LearnedSettings
from ..pipeline.learned_state import pack, unpack
from .safe import OversizedRow

log = structlog.get_logger(__name__)

LOADED = 64
"""Learners of a partition that are held in memory, 2 MB each at most; others are read again when they are asked for."""


class Rows(Protocol):
    """The table, as this file uses it."""

    def read(self, partition: int, key: bytes) -> bytes | None: ...

    async def write(self, partition: int, changes: Mapping[bytes, bytes | None]) -> None: ...


@dataclass(frozen=True, slots=True)
class Promised:
    """To whom, and how much may be wrong."""

    tenant: str
    feature: str
    """Empty where nothing was promised for the request's feature in particular."""
    bound: float

    @property
    def key(self) -> bytes:
        """The row's; the bound is no part of it, what was learned holds for another one as well."""
        return orjson.dumps([self.tenant, self.feature])


@dataclass(slots=True, eq=False)
class Loaded:
    """A learner in memory."""

    promised: Promised
    partition: int
    learner: Learner
    behind: bool = False
    """The table is: lessons came since it was written."""
    due: bool = False
    """It is to be written."""
    writing: "asyncio.Task[None] | None" = None


class Learners:
    """By partition and promise. Not safe for threads."""

    def __init__(self, rows: Rows, settings: LearnedSettings) -> None:
        """`settings`: all but the bound."""
        self._rows = rows
        self._settings = settings
        self._loaded: dict[int, OrderedDict[bytes, Loaded]] = {}

    def of(self, partition: int, promised: Promised) -> Loaded | None:
        """None where the partition is not ours."""
        loaded = self._loaded.setdefault(partition, OrderedDict())
        found = loaded.get(promised.key)
        if found is None:
            try:
                raw = self._rows.read(partition, promised.key)
            except Stale:
                return None
            found = loaded[promised.key] = Loaded(promised, partition, self._learner(promised, raw))
            self._unload(loaded)
        loaded.move_to_end(promised.key)
        return found

    def _learner(self, promised: Promised, raw: bytes | None) -> Learner:
        settings = replace(self._settings, bound=promised.bound)
        if raw is None:
            return Learner(settings)
        try:
            return Learner.restored(settings, unpack(raw))
        except ValueError as error:
            log.error(
                "what was learned about shared answers can't be read: nothing is shared until it is learned anew",
                tenant=promised.tenant,
                error=str(error),
            )
            return Learner(settings)

    def _unload(self, loaded: OrderedDict[bytes, Loaded]) -> None:
        if len(loaded) <= LOADED:
            return
        idle = next((key for key, one in loaded.items() if not one.behind and one.writing is None), None)
        if idle is not None:
            del loaded[idle]
        else:  # the next one finds it written
            self.keep(next(iter(loaded.values())))

    def all(self, partition: int | None = None) -> Iterable[Loaded]:
        partitions = list(self._loaded) if partition is None else [partition]
        return [one for p in partitions for one in self._loaded.get(p, {}).values()]

    def keep(self, one: Loaded) -> None:
        """Writes it as it is now, soon; one write of a learner at a time."""
        one.due = True
        if one.writing is None:
            one.writing = asyncio.create_task(self._write(one), name="keep a learner")

    async def _write(self, one: Loaded) -> None:
        try:
            while one.due:
                one.due = one.behind = False
                state = one.learner.state()
                await self._rows.write(one.partition, {one.promised.key: await asyncio.to_thread(pack, state)})
        except Stale:
            pass  # the next owner goes on from what was written before
        except OversizedRow as error:
            log.error("what was learned about shared answers can't be kept: after a restart it is learned anew", error=str(error))
        finally:
            one.writing = None

    async def kept(self) -> None:
        """Returns when everything learned is in the table, or can't be."""
        for one in self.all():
            if one.behind:
                self.keep(one)
        await asyncio.gather(*(one.writing for one in self.all() if one.writing is not None), return_exceptions=True)

    def forget(self, partitions: Iterable[int]) -> None:
        """They are another worker's now."""
        for partition in partitions:
            for one in self._loaded.pop(partition, {}).values():
                if one.writing is not None:
                    one.writing.cancel()


Bounds = Callable[[str, str], Promised]
"""(tenant, feature of the request) -> what was promised."""
