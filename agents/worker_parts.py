"""What a worker is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..pipeline.breaker import BreakerPolicy
from ..pipeline.hedge import HedgePolicy
from ..pipeline.ingest import Door
from ..pipeline.learned_settings import LearnedSettings
from ..pipeline.ledger import OnAmbiguous
from ..pipeline.models import Catalogue, Model
from ..pipeline.ports import BatchProvider, Embedder, Provider, VectorIndex
from ..pipeline.semantic import StaticPolicy
from ..schemas.record import Lane
from ..schemas.topics import Topics, TopicSpec
from .attempt import CallSettings
from .coalesce import CoalesceSettings
from .embedding_costs import EmbeddingPrice
from .exact import Keeper
from .learners import Bounds
from .ledger import LedgerSettings
from .route import Decide
from .routers import Routers
from .throttle import ThrottleSettings
from .watchdog import WatchdogSettings


@dataclass(frozen=True, slots=True)
class Judging:
    """A model that is asked about answers."""

    model: Model
    may: Callable[[str], bool]
    """Whether a tenant's answers may be shown to it."""


@dataclass(frozen=True, slots=True)
class Grading:
    """A model that says what answers are worth."""

    judge: Judging
    rate: float
    """Share of the answers that the router may learn from."""


@dataclass(frozen=True, slots=True)
class Learning:
    """What the learned decision needs."""

    settings: LearnedSettings
    """All but the bound."""
    bounds: Bounds
    judging: Judging | None = None
    """None: the answers' likeness is the judge."""


@dataclass(frozen=True, slots=True)
class SemanticParts:
    """What the semantic tier needs; without it the tier is off."""

    embedder: Embedder
    make_index: Callable[[int], VectorIndex]
    """By partition."""
    keeper: Keeper
    policy: StaticPolicy | Learning
    coalesce: CoalesceSettings
    judge_similarity: float
    """Cosine from which two answers in free text say the same."""
    price: EmbeddingPrice | None = None
    """None where the embedder runs here and bills nothing."""


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """All that a worker is made of; see agents/compose.py for how settings become this."""

    brokers: tuple[str, ...]
    topics: Topics
    specs: Sequence[TopicSpec]
    """What the topics must be like before anything starts."""
    partitions: int
    data_dir: Path
    store: Literal["rocksdb", "memory"]
    catalogue: Catalogue
    door: Door
    providers: Mapping[str, Provider]
    keeper: Keeper
    decide_route: Decide
    semantic: SemanticParts | None
    tenants: Mapping[str, str]
    """Requests topics that belong to one tenant -> the tenant."""
    default_tenant: str
    permits: Mapping[Lane, int]
    call: CallSettings
    on_ambiguous: Callable[[str], OnAmbiguous]
    ledger: LedgerSettings
    batches: Mapping[str, BatchProvider] = field(default_factory=dict)
    """By provider; where there are none every call is made at once."""
    prefix_enabled: bool = True
    prefix_cache_size: int = 1_000
    watchdog: WatchdogSettings = field(default_factory=WatchdogSettings)
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    hedge: HedgePolicy = field(default_factory=HedgePolicy)
    throttle: ThrottleSettings = field(default_factory=ThrottleSettings)
    routers: Routers | None = None
    """What feedback taught; None where the router does not learn."""
    grading: Grading | None = None
    metrics_port: int = 0
    """Of health and metrics, on loopback; 0: any free one."""
