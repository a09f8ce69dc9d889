"""The design document's complexity score: five factors of a request, weighted, 0 (simple) to 1 (complex).

It ranks prompts about as well as their length does (measured: APGR 0.54 to 0.60 on GSM8K, length alone 0.60), and its fixed cuts send most
prompts to the economy tier. It is kept as documented, explainable and free; learned policies take its place behind `RoutingPolicy`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from .models import TierName

_WORD = re.compile(r"[a-z][a-z0-9+#'-]+")
_SCANNED = 3_000
"""Characters read at either end of a text: what a prompt asks for stands at its beginning or its end."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


REASONING = _words(
    """
    analyze analyse analysis assess evaluate compare contrast explain why justify argue critique criticize derive deduce infer prove proof
    disprove reason reasoning solve calculate compute estimate optimize design plan architect debug diagnose refactor investigate interpret
    synthesize hypothesize predict trade-offs tradeoffs implications consequences pros cons step-by-step therefore strategy
    """
)
"""Words that ask for thought rather than recall."""

JARGON = _words(
    """
    algorithm algorithms api asynchronous authentication bayesian bytecode compiler concurrency cryptography database deadlock derivative
    distributed eigenvalue encryption entropy fourier gradient hash heuristic hypothesis integral kernel kubernetes latency lemma matrix
    microservice mutex neural optimization polynomial probability protocol quantum query recursion recursive regression runtime schema
    semantics sql statistical stochastic tensor theorem thread topology transformer variance vector
    c++ c# java javascript python rust golang typescript regex json xml html css bash
    amortization antitrust arbitrage bond collateral compliance contract covenant derivatives equity fiduciary indemnity jurisdiction
    liability liquidity litigation plaintiff portfolio statute tort valuation warranty
    biopsy carcinoma cardiac clinical diagnosis dosage enzyme etiology genome metabolic mrna neuron pathology pharmacology protein syndrome
    """
)
"""Words of software, mathematics, law, finance and medicine."""

LONG_ANSWER = _words(
    "essay article report detailed comprehensive thorough in-depth exhaustive story chapter tutorial guide documentation specification"
)
SHORT_ANSWER = _words("briefly short concise classify label translate extract one-word")

_LONG_INPUT_TOKENS = 2_000
_MANY_TURNS = 8
_LONG_OUTPUT_TOKENS = 2_000


@dataclass(frozen=True, slots=True)
class Weights:
    """What each factor counts for; only their proportions matter."""

    length: float = 0.2
    reasoning: float = 0.3
    domain: float = 0.2
    context: float = 0.15
    output: float = 0.15

    def __post_init__(self) -> None:
        values = [getattr(self, f.name) for f in fields(self)]
        if min(values) < 0 or sum(values) <= 0:
            raise ValueError(f"complexity_weights {values} can't weigh anything: give weights of 0 or more, at least one above 0")

    @classmethod
    def of(cls, given: Mapping[str, float]) -> "Weights":
        """The defaults with some weights replaced. Raises ValueError for a factor that there isn't."""
        unknown = sorted(set(given) - {f.name for f in fields(cls)})
        if unknown:
            names = ", ".join(f.name for f in fields(cls))
            raise ValueError(f"complexity_weights has no factor {', '.join(unknown)}; there are {names}")
        return cls(**given)


@dataclass(frozen=True, slots=True)
class Complexity:
    """The score and its factors, each 0 to 1."""

    score: float
    length: float
    reasoning: float
    domain: float
    context: float
    output: float

    @property
    def tier(self) -> TierName:
        """Below 0.3 economy, below 0.7 standard, else premium."""
        return "economy" if self.score < 0.3 else "standard" if self.score < 0.7 else "premium"

    def __str__(self) -> str:
        factors = ", ".join(f"{f.name} {getattr(self, f.name):.2f}" for f in fields(self) if f.name != "score")
        return f"complexity {self.score:.2f} ({factors})"


def estimate(text: str, *, input_tokens: int, turns: int, max_tokens: int | None, weights: Weights | None = None) -> Complexity:
    """`text` is the last user turn; `input_tokens` counts all messages, `turns` the user's. `max_tokens` is the answer's limit if given."""
    weights = weights or Weights()
    scanned = text if len(text) <= 2 * _SCANNED else f"{text[:_SCANNED]} {text[-_SCANNED:]}"
    words = frozenset(_WORD.findall(scanned.lower()))
    length = min(1.0, input_tokens / _LONG_INPUT_TOKENS)
    reasoning = min(1.0, len(words & REASONING) / 3)
    domain = min(1.0, (len(words & JARGON) + 2 * _has_code(scanned)) / 4)
    context = min(1.0, max(0, turns - 1) / (_MANY_TURNS - 1))
    output = _output(words, max_tokens)
    total = weights.length + weights.reasoning + weights.domain + weights.context + weights.output
    weighted = (
        weights.length * length
        + weights.reasoning * reasoning
        + weights.domain * domain
        + weights.context * context
        + weights.output * output
    )
    return Complexity(min(1.0, weighted / total), length, reasoning, domain, context, output)


def _has_code(text: str) -> bool:
    return "```" in text or "\\frac" in text or "\\sum" in text or "$$" in text


def _output(words: frozenset[str], max_tokens: int | None) -> float:
    """What the prompt asks for, bounded by what the request allows."""
    asked = 1.0 if words & LONG_ANSWER else 0.0 if words & SHORT_ANSWER else 0.25
    return asked if max_tokens is None else min(asked, max_tokens / _LONG_OUTPUT_TOKENS)
