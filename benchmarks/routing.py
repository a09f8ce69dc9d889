"""What routing saves, and at what quality, on public tables of scored answers: figures of docs/routing.md.

    python benchmarks/routing.py tables       every policy on GSM8K (two models) and on nine models, 5 folds
    python benchmarks/routing.py held_out     the same with kinds of prompts held out
    python benchmarks/routing.py thresholds   how often a validated threshold keeps its target, on 50 random splits
    python benchmarks/routing.py small        the same on tables of 500 prompts
    python benchmarks/routing.py feedback     how much is learned from how many scores
    python benchmarks/routing.py served       how much the engine learns from the answers that it serves
    python benchmarks/routing.py decision     how long one decision takes
    python benchmarks/routing.py cheaper      what is chosen where a cheaper model is also better

Tables and licences: benchmarks/data/routing. Needs the extra [embed]; embeddings are kept in the data folder after the first time.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from support import percentile, print_table, say

from inference_engine.agents.routing import price_now
from inference_engine.cli.evaluate_routing import read_table
from inference_engine.cli.prompt_embeddings import embeddings_of
from inference_engine.connectors.models_toml import load_catalogue
from inference_engine.pipeline.complexity import estimate
from inference_engine.pipeline.feedback import Lesson
from inference_engine.pipeline.feedback_model import MOST_SCORES, Fitted, Scores, learn
from inference_engine.pipeline.feedback_policy import FeedbackPolicy
from inference_engine.pipeline.models import Model
from inference_engine.pipeline.prompt_features import feature_rows, prompt_features
from inference_engine.pipeline.route import HeuristicPolicy, Offer, RouteFeatures, RoutingPolicy, features_of, route
from inference_engine.pipeline.routing_curve import Ends, Predictions, area, choices, cost_curve, grid, outcomes, share_curve
from inference_engine.pipeline.routing_evaluation import MARGIN, TARGETS, Result, cross_splits, evaluate, one_split, threshold
from inference_engine.pipeline.routing_policies import QuantilePolicy
from inference_engine.pipeline.routing_table import Table
from inference_engine.pipeline.score_model import fit
from inference_engine.pipeline.table_policies import Rows, learned, rows_of
from inference_engine.pipeline.taught_router import FIRST_LESSONS, TaughtRouter, teach
from inference_engine.schemas.record import Lane
from inference_engine.schemas.requests import Identity, Request

DATA = Path(__file__).parent / "data" / "routing"
SPLITS = 50
SHOWN = ("random", "prompt_length", "static_mix", "heuristic", "quantile", "learned", "oracle")


def load(name: str, groups: Sequence[str] | None = None, *, by_group: bool = False) -> Rows:
    table = read_table(DATA / f"{name}.jsonl.gz")[0]
    if groups is not None:
        table = replace(table, groups=tuple(groups))
    scores = np.array([estimate(p, input_tokens=len(p) // 4, turns=1, max_tokens=None).score for p in table.prompts])
    return rows_of(table, feature_rows(table.prompts), embeddings_of(table.prompts, say), scores, by_group=by_group)


def topics(rows: Rows) -> list[str]:
    """Twenty clusters of the embeddings."""
    from sklearn.cluster import KMeans

    assert rows.embeddings is not None
    return [str(label) for label in KMeans(20, random_state=0, n_init=3).fit_predict(rows.embeddings)]


# --- tables ----------------------------------------------------------------------------------------------------------


def tables() -> None:
    _measure("GSM8K, two models, 5 folds", load("gsm8k"))
    _measure("nine models, 5 folds", load("nine_models"))


def held_out() -> None:
    _measure("nine models, twenty topics held out", load("nine_models", topics(load("nine_models")), by_group=True))
    _measure("nine models, the data set's three clusters held out", load("nine_models", by_group=True))


def _measure(title: str, rows: Rows) -> None:
    random = np.random.default_rng(0)
    made = evaluate(cross_splits(rows, random), SHOWN, random, progress=say)
    print_table(title, COLUMNS, [line(name, result) for name, result in made.items()])


COLUMNS = ("policy", "APGR", "CPT50", "CPT80", "saved at 95 %", "saved at 99 %", "validated 95 %: saved", "quality")


def line(name: str, result: Result) -> tuple[str, ...]:
    low, high = result.intervals["apgr"] or (float("nan"), float("nan"))
    apgr = "–" if result.apgr is None else f"{result.apgr:.3f} ({low:.2f} to {high:.2f})"
    shares = (result.cpt50, result.cpt80, result.saved_at_95, result.saved_at_99, result.saved_at_95_validated, result.quality_vs_best)
    return name, apgr, *("–" if share is None else f"{100 * share:.1f} %" for share in shares)


# --- thresholds ------------------------------------------------------------------------------------------------------


def thresholds() -> None:
    for name in ("gsm8k", "nine_models"):
        rows = load(name)
        _print_kept(name, rows, len(rows))


def small() -> None:
    _print_kept("500 prompts of nine_models", load("nine_models"), 500)


def _print_kept(name: str, rows: Rows, count: int) -> None:
    made = [_kept(rows, count, np.random.default_rng(seed)) for seed in range(SPLITS)]
    lines = []
    for i, target in enumerate(TARGETS):
        for j, margin in enumerate((0.0, 1.0, MARGIN)):
            kept = np.array([split[i][j] for split in made])
            met = (f"{kept[:, column].mean():.0%}" for column in (0, 1))
            lines.append((f"{target:.0%}", f"{margin:g}", *met, f"{100 * kept[:, 2].mean():.1f} %"))
    columns = ("target", "margin, standard errors", "splits that met it", "of the model that was best in training", "saved, mean")
    print_table(f"{name}: {SPLITS} random splits, 80 % to learn from and 20 % served", columns, lines)


def _kept(rows: Rows, count: int, random: np.random.Generator) -> list[list[tuple[bool, bool, float]]]:
    """By target and margin: whether the test part met the target of its own best model, and of that of training, and what it saved."""
    order = random.permutation(len(rows))[:count]
    served = count // 5
    split = one_split(rows.rows(order[served:]), rows.rows(order[:served]), random)
    played = learned(split.train, split.folds, split.test, random)
    train, test = split.train.table, split.test.table
    best, target_best = Ends.of(train.scores, train.costs).best, Ends.of(test.scores, test.costs).best
    clusters = np.unique(split.train.kinds, return_inverse=True)[1]
    made: list[list[tuple[bool, bool, float]]] = []
    for target in TARGETS:
        made.append([])
        for margin in (0.0, 1.0, MARGIN):
            point = threshold(played.train, train.scores[:, best], target, served, margin, clusters)
            score = test.scores[:, best] if point is None else played.test.scores[:, point]
            cost = test.costs[:, best] if point is None else played.test.costs[:, point]
            met, of_known = (bool(score.mean() >= target * test.scores[:, model].mean()) for model in (target_best, best))
            made[-1].append((met, of_known, 1.0 - float(cost.mean() / test.costs[:, target_best].mean())))
    return made


# --- feedback --------------------------------------------------------------------------------------------------------


HOLDOUTS = 3
_REFIT = 50
_SERVINGS = 5
_GROWTH = 1.2
"""Of the answers until the engine's router is learned anew here; in the engine 1.05, where there is time for it."""
_FEW_STRENGTHS = ((0.3, 0.3, 0.3), (0.3, 1.0, 0.3), (0.3, 1.0, 1.0))
_ALL = "prompts scored on every model"
_ONE = "single answers scored, chosen by Thompson sampling"


def feedback() -> None:
    """Two yardsticks: the learner's own end, with as many scores as it keeps, and all models' scores of all prompts."""
    for name in ("nine_models", "gsm8k"):
        rows = load(name)
        made: dict[tuple[str, int], list[float]] = {}
        for seed in range(HOLDOUTS):
            say(f"{name}: {seed + 1} of {HOLDOUTS}")
            random = np.random.default_rng(seed)
            order = random.permutation(len(rows))
            held, seen = rows.rows(order[: len(rows) // 4]), rows.rows(order[len(rows) // 4 :])
            for number in sorted({min(number, len(seen)) for number in (100, 1_000, len(seen))}):
                made.setdefault((_ALL, number), []).append(_apgr(held, _scored(seen, number, random, held)))
            for number, fitted in _thompson(seen, sorted({min(n, len(seen)) for n in (250, 500, 1_000, MOST_SCORES)}), random):
                reached = _apgr(held, fitted.model.predict(held.features, held.embeddings))
                made.setdefault((_ONE, number), []).append(reached)
        ends = {how: np.mean(made[how, max(number for h, number in made if h == how)]) for how in (_ALL, _ONE)}
        lines = []
        for (how, number), found in made.items():
            reached = float(np.mean(found))
            lines.append((how, f"{number:,}", f"{reached:.3f}", f"{reached / ends[how]:.0%}", f"{reached / ends[_ALL]:.0%}"))
        columns = ("learned from", "number", "APGR", "of its own end", "of all scores of all prompts")
        print_table(f"{name}: APGR on the quarter of the prompts that was held out; mean of {HOLDOUTS}", columns, lines)


def _scored(seen: Rows, number: int, random: np.random.Generator, held: Rows) -> NDArray[np.float64]:
    """Predictions for the prompts held out, from the first prompts scored on every model."""
    first = seen.rows(np.arange(number))
    made = fit(first.features, first.embeddings, first.table.scores, np.arange(number) % 5, random)
    return made.model.predict(held.features, held.embeddings)


def _thompson(seen: Rows, checkpoints: Sequence[int], random: np.random.Generator) -> list[tuple[int, Fitted]]:
    """A bandit that is asked at prices all over the range that matters, and hears the score of the model that it chose."""
    assert seen.embeddings is not None
    scores, costs = seen.table.scores, seen.table.costs.mean(axis=0)
    count = scores.shape[1]
    price = (scores.mean(axis=0).max() - scores[:, costs.argmin()].mean()) / (costs.max() - costs.min())
    chosen = random.integers(0, count, min(_REFIT, len(seen)))
    found = []
    while True:
        number = len(chosen)
        given = Scores(seen.features[:number], seen.embeddings[:number], chosen, scores[np.arange(number), chosen])
        fitted = learn(given, count, random, _FEW_STRENGTHS)
        if number in checkpoints:
            found.append((number, fitted))
        until = min([at for at in checkpoints if at > number], default=number)
        part = np.arange(number, min(until, number + max(_REFIT, number // 20)))
        if not len(part):
            return found
        draws = fitted.model.draws(seen.features[part], seen.embeddings[part])
        drawn = draws[random.integers(0, len(draws), len(part)), np.arange(len(part))]
        at = price * np.exp(random.uniform(np.log(0.1), np.log(3.0), len(part)))
        chosen = np.concatenate([chosen, (drawn - at[:, None] * costs).argmax(axis=1)])


def served() -> None:
    """The same where the engine's own policy chooses, which explores on 5 % of the requests at most."""
    for name in ("gsm8k", "nine_models"):
        rows = load(name)
        made: dict[int, list[tuple[float, float]]] = {}
        for seed in range(_SERVINGS):
            random = np.random.default_rng(seed)
            order = random.permutation(len(rows))
            held, seen = rows.rows(order[: len(rows) // 4]), rows.rows(order[len(rows) // 4 :])
            for number, apgr, explored in _served(seen, held, random):
                made.setdefault(number, []).append((apgr, explored))
                say(f"{name} {seed}: {number} {apgr:.3f} {explored:.3f}")
        means = {number: np.array(found).mean(axis=0) for number, found in made.items()}
        end = means[max(means)][0]
        lines = []
        for number, found in made.items():
            reached = [value for value, _ in found]
            share = f"{100 * means[number][1]:.1f} %"
            lines.append(
                (
                    f"{number:,}",
                    f"{np.mean(reached):.3f} ({min(reached):.2f} to {max(reached):.2f})",
                    f"{np.mean(reached) / end:.0%}",
                    share,
                )
            )
        columns = ("answers scored", "APGR (least to greatest)", "of its own end", "explored")
        print_table(f"{name}: what the engine learns from its own choices, {_SERVINGS} runs", columns, lines)


def _served(seen: Rows, held: Rows, random: np.random.Generator) -> list[tuple[int, float, float]]:
    """Its policy chooses, every answer is scored, and it learns anew as more came. (answers, APGR, share that explored)."""
    assert seen.embeddings is not None
    usual = seen.table.costs.mean(axis=0)
    models = [Model(name, "simulated", name, "standard", context_tokens=8_000, max_output_tokens=2_000) for name in seen.table.models]
    offers = [Offer(model, round(cost * 10**12), 1.0) for model, cost in zip(models, usual, strict=True)]
    state: list[TaughtRouter | None] = [None]
    cold = QuantilePolicy()
    policy = FeedbackPolicy(lambda tenant: state[0], cold, cold)
    lessons: list[Lesson] = []
    explored = 0
    found = []
    checkpoints = sorted({min(number, len(seen)) for number in (250, 500, 1_000, MOST_SCORES)})
    learn_at = FIRST_LESSONS
    for i in range(checkpoints[-1]):
        features = RouteFeatures("auto", None, seen.table.prompts[i], 100, 1, None, draw=float(random.random()))
        chosen = policy.rank(features, seen.embeddings[i], offers).chosen
        assert chosen is not None
        explored += chosen.explored
        score = float(seen.table.scores[i, seen.table.models.index(chosen.model)])
        heard = tuple(seen.features[i]), seen.embeddings[i], chosen.expected, chosen.chance, chosen.costs
        lessons.append(Lesson(chosen.model, score, *heard, i))
        if len(lessons) in (learn_at, *checkpoints):
            state[0] = taught = teach(lessons, random)
            learn_at = max(learn_at, round(_GROWTH * len(lessons)))
        if len(lessons) in checkpoints:
            made = taught.model
            assert made is not None
            columns = [taught.column[name] for name in seen.table.models]
            reached = _apgr(held, made.predict(held.features, held.embeddings)[:, columns])
            found.append((len(lessons), reached, explored / len(lessons)))
    return found


def _apgr(rows: Rows, predicted: NDArray[np.float64]) -> float:
    table = rows.table
    ends = Ends.of(table.scores, table.costs)
    if len(table.models) == 2:
        gain = predicted[:, ends.best] - predicted[:, ends.cheapest]
        x, y = share_curve(gain, np.ones((1, len(table))), table.scores[:, ends.cheapest], table.scores[:, ends.best])
        return area(x[0], y[0])
    expected = Predictions(predicted, np.tile(table.costs.mean(axis=0), (len(table), 1)))
    made = outcomes(expected, grid(expected), table.scores, table.costs)
    cheapest, best = ((table.scores[:, [m]].mean(axis=0), table.costs[:, [m]].mean(axis=0)) for m in (ends.cheapest, ends.best))
    x, y = cost_curve(made.scores.mean(axis=0)[None, :], made.costs.mean(axis=0)[None, :], cheapest, best)
    return area(x[0], y[0])


# --- decision --------------------------------------------------------------------------------------------------------


def decision() -> None:
    lines = []
    for name in ("gsm8k",):
        rows = load(name)
        assert rows.embeddings is not None
        random = np.random.default_rng(0)
        model = fit(rows.features, rows.embeddings, rows.table.scores, np.arange(len(rows)) % 5, random).model
        costs = rows.table.costs.mean(axis=0)[None, :]
        wall, cpu = [], []
        for i in range(1_000):
            begun = time.perf_counter(), time.thread_time()
            features = np.array([prompt_features(rows.table.prompts[i])])
            choices(Predictions(model.predict(features, rows.embeddings[i : i + 1]), costs), 1.0)
            wall.append(1e3 * (time.perf_counter() - begun[0]))
            cpu.append(1e3 * (time.thread_time() - begun[1]))
        lines.append((name, *(f"{percentile(times, percent):.2f} ms" for times in (cpu, wall) for percent in (50, 99))))
    columns = ("table", "CPU p50", "CPU p99", "wall p50", "wall p99")
    print_table("One decision of the learned policy, features and choice, without the embedding", columns, lines)
    _in_the_engine(load("nine_models"))


def _in_the_engine(rows: Rows) -> None:
    """All that the route stage does for a request: what it is like, who can, what that costs, the policy's choice."""
    assert rows.embeddings is not None
    catalogue = load_catalogue().for_providers(["openai", "anthropic", "cohere"])
    able = [model.name for model in catalogue.models if model.enabled and model.auto][: len(rows.table.models)]
    random = np.random.default_rng(0)
    order = random.permutation(len(rows))[:MOST_SCORES]
    chosen = random.integers(0, len(able), len(order))
    lessons = [
        Lesson(able[c], float(rows.table.scores[i, c]), tuple(rows.features[i]), rows.embeddings[i], None, 1 / len(able), (), at)
        for at, (i, c) in enumerate(zip(order, chosen, strict=True))
    ]
    state, cold = teach(lessons, random), QuantilePolicy(recent=sorted(random.normal(size=2_000).tolist()))
    policies: dict[str, RoutingPolicy] = {
        "heuristic": HeuristicPolicy(),
        "quantile": cold,
        "learned, before any feedback": FeedbackPolicy(lambda _: None, cold, cold),
        f"learned, from {len(lessons):,} scores ({state.status})": FeedbackPolicy(lambda _: state, cold, cold),
    }
    lines = []
    for name, policy in policies.items():
        wall, cpu = [], []
        for i in range(1_000):
            request = _request(rows.table.prompts[i], i)
            begun = time.perf_counter(), time.thread_time()
            route(features_of(request), catalogue, price_now, policy, rows.embeddings[i])
            wall.append(1e3 * (time.perf_counter() - begun[0]))
            cpu.append(1e3 * (time.thread_time() - begun[1]))
        lines.append((name, *(f"{percentile(times, percent):.2f} ms" for times in (cpu, wall) for percent in (50, 99))))
    offered = sum(model.enabled and model.auto for model in catalogue.models)
    print_table(f"One decision in the engine, {offered} models on offer", ("policy", "CPU p50", "CPU p99", "wall p50", "wall p99"), lines)


def _request(prompt: str, number: int) -> Request:
    body = {"messages": [{"role": "user", "content": prompt}]}
    return Request(
        identity=Identity(tenant="t", job="j", custom_id=str(number)), body=body, model="auto", fingerprint="0" * 64, scope="1" * 64,
        flight=f"{number * 7919 % 16**8:08x}" + "0" * 56, lane=Lane.STANDARD, accepted_ms=0, cache_ttl_s=60,
    )  # fmt: skip


# --- cheaper ---------------------------------------------------------------------------------------------------------


def cheaper() -> None:
    lines = []
    whole = load("nine_models")
    rows = whole.rows(np.arange(0, len(whole), 5))
    quality, cost = rows.table.scores.mean(axis=0), rows.table.costs.mean(axis=0)
    for dear in np.argsort(-cost):
        for cheap in np.argsort(cost):
            if cost[cheap] < cost[dear] and quality[cheap] > quality[dear]:
                table: Table = rows.table.only([rows.table.models[cheap], rows.table.models[dear]])
                pair = replace(rows, table=table)
                random = np.random.default_rng(0)
                made = evaluate(cross_splits(pair, random), ("learned",), random, resamples=10)["learned"]
                always = all(abs(point[0] - 1.0) < 1e-9 for point in made.curve)
                lines.append((*table.models, f"{quality[cheap] - quality[dear]:+.3f}", "yes" if always else "no"))
    print_table("Pairs whose cheaper model is also better", ("cheaper", "dearer", "better by", "always chosen, at any price"), lines)


if __name__ == "__main__":
    parts = {
        "tables": tables,
        "held_out": held_out,
        "thresholds": thresholds,
        "small": small,
        "feedback": feedback,
        "served": served,
        "decision": decision,
        "cheaper": cheaper,
    }
    chosen = sys.argv[1:]
    if not chosen or not set(chosen) <= set(parts):
        sys.exit(f"name one or more of: {', '.join(parts)}")
    for part in chosen:
        parts[part]()
