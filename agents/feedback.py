"""Runs the learning: reads `feedback` and `lessons`, keeps the table of lessons, and publishes what was learned on `routers`."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog

from ..connectors.taught_file import pack_router
from ..pipeline.errors import Rejected, Stale
from ..pipeline.feedback import Lesson, drifting_since, event_of, kind_of, lesson_of, merged, read_feedback, router_key, row_key
from ..pipeline.feedback_model import MOST_SCORES
from ..pipeline.taught_router import TaughtRouter, teach
from ..schemas import packets
from ..schemas.feedback import LessonRecord, LessonRow, Rated, RouterRow, Served
from ..schemas.record import Lane
from .exact import Decided, Rows, decode
from .metrics import FEEDBACK
from .outbox import Outbox
from .packer import Now
from .safe import DeadLetter, Delivered

log = structlog.get_logger(__name__)

WAITING = 20_000
"""Answers of one tenant that are remembered while nobody has judged them, and judgements whose answer is not known."""
_MOST_NEWS, _SHARE_OF_NEWS = 10, 0.05
"""It is learned anew when so many lessons came, or this share of all, whichever is more."""
_REST = 4.0
"""Times as long as it learned, a worker doesn't learn: a fifth of a core at most, where every answer is judged at once."""


@dataclass(slots=True)
class _Class:
    """One tenant's lessons, in memory."""

    partition: int
    router: RouterRow = field(default_factory=RouterRow)
    lessons: dict[bytes, Lesson] = field(default_factory=dict)
    waiting: dict[bytes, None] = field(default_factory=dict)
    """Rows that lack their other half, oldest first."""
    news: int = 0
    task: "asyncio.Task[None] | None" = None

    def ordered(self) -> list[Lesson]:
        """The newest that may be learned from, oldest first."""
        found = [(lesson.at_ms, key) for key, lesson in self.lessons.items() if lesson.at_ms >= self.router.since_ms]
        return [self.lessons[key] for _, key in sorted(found)[-MOST_SCORES:]]


class FeedbackStage:
    """Teaches the routers of the tenants whose partitions this worker owns. One fit at a time: it takes a core for seconds."""

    def __init__(
        self,
        rows: Rows,
        outbox: Outbox,
        now: Now,
        *,
        default_tenant: str,
        default_job: str,
        taught: Callable[[str], TaughtRouter | None] = lambda _: None,
    ) -> None:
        """`taught`: what is published already."""
        self._rows = rows
        self._decided = Decided(rows)
        self._out = outbox
        self._now = now
        self._default_tenant = default_tenant
        self._default_job = default_job
        self._taught = taught
        self._classes: dict[str, _Class] = {}
        self._one = asyncio.Lock()

    # -- what comes in

    async def on_feedback(self, event: Delivered) -> None:
        """One judgement, passed on to its tenant's partition and to the costs. Raises `DeadLetter` where it is none."""
        raw = dict(event.headers).get("tenant")
        at_ms = event.timestamp_ms if event.timestamp_ms > 0 else self._now()
        try:
            tenant = self._default_tenant if raw is None else raw.decode()
            rated = read_feedback(event.value or b"", tenant, self._default_job, at_ms)
        except UnicodeDecodeError:
            raise DeadLetter("the header `tenant` is not UTF-8", error_class="no_tenant") from None
        except Rejected as error:
            raise DeadLetter(str(error), error_class=error.code) from error
        sends = self._out.batch()
        sends.lesson(rated, Lane.BATCH)
        sends.cost(event_of(rated), Lane.BATCH)
        await sends.settle()

    async def on_lessons(self, event: Delivered) -> None:
        """Joins what was served with what was said of it; returns when that is durable."""
        changes: dict[bytes, bytes | None] = {}
        members: list[LessonRecord] = decode(packets.lessons, event)
        for news in members:
            self._take(event.partition, news, changes)
        await self._decided.write(event.partition, changes)
        for tenant in {news.identity.tenant for news in members}:
            self._learn_soon(tenant)

    def _take(self, partition: int, news: LessonRecord, changes: dict[bytes, bytes | None]) -> None:
        key = row_key(news.identity, news.attempt if isinstance(news, Served) else "")
        raw = changes[key] if key in changes else self._decided.read(partition, key)
        row = merged(LessonRow.model_validate_json(raw) if raw is not None else None, news)
        value = row.model_dump_json().encode()
        if value == raw:
            return
        changes[key] = value
        found = self._classes.setdefault(news.identity.tenant, _Class(partition))
        FEEDBACK.labels("judged" if isinstance(news, Rated) and news.source == "judge" else news.type).inc()
        found.news += self._keep(found, key, row)
        changes.update(dict.fromkeys(_too_many(found)))

    @staticmethod
    def _keep(found: _Class, key: bytes, row: LessonRow) -> bool:
        """Whether it is news to learn from."""
        lesson = lesson_of(row)
        if lesson is None:
            found.waiting[key] = None
            return False
        found.waiting.pop(key, None)
        found.lessons[key] = lesson
        return True

    # -- ownership

    async def assigned(self, partitions: Iterable[int]) -> None:
        """Rebuilds what is kept in memory from the recovered rows."""
        for partition in partitions:
            waiting: list[tuple[int, bytes, str]] = []
            for key, value in self._rows.scan(partition):
                if kind_of(key) == "router":
                    self._classes.setdefault(key[1:].decode(), _Class(partition)).router = RouterRow.model_validate_json(value)
                    continue
                row = LessonRow.model_validate_json(value)
                tenant = tenant_of(key)
                if not self._keep(self._classes.setdefault(tenant, _Class(partition)), key, row):
                    waiting.append((row.served.at_ms if row.served else max(row.rated_ms, row.judged_ms), key, tenant))
            for _, key, tenant in sorted(waiting):
                found = self._classes[tenant]
                found.waiting.pop(key, None)
                found.waiting[key] = None  # oldest first
        for tenant, found in self._classes.items():
            state = self._taught(tenant)
            found.news = len(found.ordered()) - (state.lessons if state is not None and state.version == found.router.version else 0)
            self._learn_soon(tenant)

    async def revoked(self, partitions: Iterable[int]) -> None:
        gone = {tenant: found for tenant, found in self._classes.items() if found.partition in set(partitions)}
        for tenant, found in gone.items():
            del self._classes[tenant]
            if found.task is not None:
                found.task.cancel()
        await asyncio.gather(*(found.task for found in gone.values() if found.task is not None), return_exceptions=True)

    async def stop(self) -> None:
        """What was being learned is learned by the next owner."""
        await self.revoked({found.partition for found in self._classes.values()})

    # -- learning

    def _learn_soon(self, tenant: str) -> None:
        found = self._classes.get(tenant)
        if found is None or found.task is not None or found.news < max(_MOST_NEWS, _SHARE_OF_NEWS * len(found.lessons)):
            return
        found.task = asyncio.create_task(self._learn(tenant, found), name=f"learn {tenant}")

    async def _learn(self, tenant: str, found: _Class) -> None:
        time = asyncio.get_running_loop().time
        try:
            async with self._one:
                found.news, began = 0, time()
                await self._teach(tenant, found)
                await asyncio.sleep(_REST * (time() - began))
        except Stale:
            log.info("the partition went elsewhere: its new owner learns on", tenant=tenant)
        except Exception as error:
            # Nothing is lost: the lessons stand in the table, and the next one tries again.
            log.error("the router could not learn; requests are routed as before", tenant=tenant, error=repr(error))
        finally:
            found.task = None
        self._learn_soon(tenant)  # of what came meanwhile

    async def _teach(self, tenant: str, found: _Class) -> None:
        lessons = found.ordered()
        router = found.router
        since = drifting_since([lesson for lesson in lessons if lesson.at_ms > router.watched_ms])
        if since is not None:
            router = router.model_copy(update={"since_ms": since, "watched_ms": lessons[-1].at_ms, "drifts": router.drifts + 1})
            what = "answers are worth less than was foretold: the best static choice routes until enough was learned anew"
            log.error(what, tenant=tenant, since_ms=since, drifts=router.drifts)
            lessons = [lesson for lesson in lessons if lesson.at_ms >= since]
        if not lessons:
            return
        published = self._taught(tenant)
        # What was imported has a version of its own.
        router = router.model_copy(update={"version": max(router.version, published.version if published is not None else 0) + 1})
        state = await asyncio.to_thread(taught_from, lessons, router)
        if state.status == "cold" and published is not None and published.status in ("static", "learned"):
            log.info("the imported router stays until more is heard", tenant=tenant, lessons=state.lessons)
            return
        # The row first: a state that was published under a version is never replaced by another one of the same.
        await self._rows.write(found.partition, {router_key(tenant): router.model_dump_json().encode()})
        found.router = router
        await self._out.append(self._out.topics.routers, tenant.encode(), pack_router(tenant, state), partition=0)


def taught_from(lessons: Sequence[Lesson], router: RouterRow) -> TaughtRouter:
    """The same lessons teach the same."""
    random = np.random.default_rng(router.version)
    return teach(lessons, random, version=router.version, since_ms=router.since_ms, drifts=router.drifts)


def tenant_of(key: bytes) -> str:
    """Of a row's key, whose first length-prefixed part it is."""
    size, _, rest = key[1:].partition(b":")
    return rest[: int(size)].decode()


def _too_many(found: _Class) -> list[bytes]:
    """Rows that have to go: the oldest."""
    gone = [next(iter(found.waiting))] if len(found.waiting) > WAITING else []
    for key in gone:
        del found.waiting[key]
    if len(found.lessons) > MOST_SCORES * 5 // 4:
        for key in sorted(found.lessons, key=lambda key: (found.lessons[key].at_ms, key))[: len(found.lessons) - MOST_SCORES]:
            del found.lessons[key]
            gone.append(key)
    return gone
