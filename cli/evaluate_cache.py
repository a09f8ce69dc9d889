"""`inference-engine evaluate cache`: how often the semantic tier shares answers, and how often wrongly, where the right ones are known."""

import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import orjson
import typer

from ..agents.embedders import configured_embedder
from ..connectors.vector_index import BruteForceIndex
from ..pipeline.errors import ConfigError
from ..pipeline.learned_settings import LearnedSettings
from ..pipeline.ports import Embedded
from ..pipeline.replay import Line, Outcome, Replay, ReplayOptions
from ..pipeline.semantic import StaticPolicy
from .cache_report import as_json, print_outcome
from .cache_stream import SHOWN, embed_stream, read_stream
from .command_settings import load_settings

_SEED = 20_260_101
_EVERY = 500


def cache_command(
    stream: Annotated[
        Path,
        typer.Argument(help='JSONL, or .gz of it, in the order of asking: {"text": "...", "answer_group": "...", "scope": optional}.'),
    ],
    bound: Annotated[float, typer.Option(help="Wrong shared answers at most, as a share of requests or hits; 0: none are shared.")] = 0.01,
    per: Annotated[Literal["request", "hit"], typer.Option(help="What the bound is a share of.")] = "request",
    policy: Annotated[Literal["learned", "static"], typer.Option(help="static: a fixed --threshold, no bound.")] = "learned",
    threshold: Annotated[float, typer.Option(help="Cosine from which the policy static shares.")] = 0.92,
    min_access_count: Annotated[int, typer.Option(help="Times served before the policy static shares; the design's gate is 4.", min=0)] = 0,
    coalesce: Annotated[bool, typer.Option("--coalesce", help="Misses pend in windows of 32 a scope; near-identical ones share.")] = False,
    judge_noise: Annotated[float, typer.Option(help="Share of compared answers that the judge gets wrong.", min=0, max=0.5)] = 0.0,
    judge_delay: Annotated[int, typer.Option(help="Requests that are decided before an answer has been compared.", min=0)] = 0,
    audit_rate: Annotated[float, typer.Option(help="Share of hits that are sent to the model all the same.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the judge's errors; nothing else is random.")] = _SEED,
    json_output: Annotated[bool, typer.Option("--json", help="One object, for programs.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw precision against hit ratio.", show_default=False)] = None,
) -> None:
    """Replay a stream of questions through the semantic tier's own decision, and count its hits and its mistakes.

    It starts from an empty cache that has learned nothing, and reads each line once, in order; nothing is known of later ones. The judge
    compares answer groups: two requests of one scope may share an answer if, and only if, their groups are equal. The embedder is the one
    that the engine's settings name (EMBEDDING_...); an endpoint is sent every text once, and may bill that.

    requests: lines of the stream. hits: requests that took another one's answer, semantic hits and coalesced ones together; hits that were
    audited (sent to the model all the same, to learn) are hits, and count as wrong where they are. wrong: hits whose answer is of another
    group. coalesced, wrong_merges: those of them that shared the call of a prompt pending beside them. intervals: 95 %, Wilson.
    decision_us: the median after the search. bytes_per_entry: vector, text and what is kept beside them.

    Ends with 0, with 1 where lines were left out because they could not be read, with 2 where nothing could be replayed.
    """
    options = _options(bound, per, policy, threshold, min_access_count, audit_rate, judge_delay, coalesce)
    lines, bad = read_stream(stream)
    _tell_bad(bad)
    found = configured_embedder(load_settings())
    if found.embedder is None:
        raise ConfigError(found.reason)
    _say(f"embedding with {found.reason}")
    embedded = embed_stream(found.embedder, [line.text for line in lines], _say)
    judge = random.Random(seed)
    outcome, index = _replay(lines, embedded, options, lambda: judge.random() < judge_noise)
    if plot is not None:
        from .cache_plot import draw

        draw(plot, outcome)
        _say(f"wrote {plot}")
    if json_output:
        typer.echo(orjson.dumps(as_json(outcome, index), option=orjson.OPT_INDENT_2).decode())
    else:
        print_outcome(outcome, index, options)
    if bad:
        raise typer.Exit(1)


def _tell_bad(bad: Sequence[str]) -> None:
    if not bad:
        return
    for what in bad[:SHOWN]:
        _say(what)
    more = f", {len(bad) - SHOWN:,} of them not named here" if len(bad) > SHOWN else ""
    _say(f"{len(bad):,} bad lines are left out{more}: the figures are those of a stream without them, and it ends with 1")


def _options(
    bound: float,
    per: Literal["request", "hit"],
    policy: Literal["learned", "static"],
    threshold: float,
    min_access_count: int,
    audit_rate: float,
    judge_delay: int,
    coalesce: bool,
) -> ReplayOptions:
    try:
        learned = LearnedSettings(bound=bound or LearnedSettings().bound, per=per, audit_rate=audit_rate)
        static = StaticPolicy(threshold=threshold, min_access_count=min_access_count)
    except ValueError as error:
        raise ConfigError(f"{error}. Nothing was replayed") from error
    share = policy == "static" or bound > 0.0
    return ReplayOptions(policy=policy, learned=learned, static=static, share=share, coalesce=coalesce, judge_delay=judge_delay)


def _replay(lines: Sequence[Line], embedded: Embedded, options: ReplayOptions, flip: Callable[[], bool]) -> tuple[Outcome, BruteForceIndex]:
    index = BruteForceIndex(embedded.vectors.shape[1], clock=lambda: 0)  # the stream's time is the number of the request
    play = Replay(lines, embedded, index, options, time.perf_counter_ns, flip)
    told = 0
    for i in play.run():
        if i + 1 - told >= _EVERY and sys.stderr.isatty():
            told = i + 1
            _say(f"replayed {told:,} of {len(lines):,}")
    return play.outcome, index


def _say(line: str) -> None:
    typer.echo(line, err=True)
