"""What was learned can be kept and taken up again: the restored learner is the one that was kept."""

import io

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_engine.pipeline.answer_groups import Vote
from inference_engine.pipeline.learned import Learner
from inference_engine.pipeline.learned_settings import LearnedSettings
from inference_engine.pipeline.learned_state import pack, unpack
from inference_engine.pipeline.ports import Neighbour, Point

QUICK = LearnedSettings(first_lessons=8, refit_every=10, caution=0.05, window=40, lessons=60, rest=3)
SCOPES = ("s", "t")

STEP = st.tuples(
    st.sampled_from(SCOPES),
    st.lists(st.tuples(st.integers(0, 12), st.floats(0.3, 1.0), st.booleans()), max_size=4),
    st.sampled_from((1.0, 0.05)),
)
Step = tuple[str, list[tuple[int, float, bool]], float]


def near(name: str, scope: str, similarity: float) -> Neighbour:
    return Neighbour(Point(name, np.zeros(1, dtype=np.float32), "t", scope, f"about {scope}", 0, 1 << 60), similarity)


def play(learner: Learner, steps: list[Step], begin: int = 0) -> list[object]:
    """Decides, audits and learns; returns all that was decided."""
    told: list[object] = []
    for i, (scope, around, rate) in enumerate(steps, begin):
        neighbours = [near(f"{scope}{name}", scope, similarity) for name, similarity, _ in around]
        considered = learner.consider("a question", scope, neighbours, i)
        best = considered.best
        learner.counted(scope, None if best is None else best.row)
        audit = learner.audit(best.probability) if best is not None else None
        votes = [Vote(f"{scope}{name}", agrees) for name, _, agrees in around]
        told += [considered, audit, learner.learn(scope, f"new{i}", considered, votes, i, rate)]
    return told


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=60), st.lists(STEP, max_size=30))
def test_a_restored_learner_is_the_kept_one_and_goes_on_as_it_would_have(before: list[Step], after: list[Step]) -> None:
    kept = Learner(QUICK)
    play(kept, before)
    raw = pack(kept.state())
    assert unpack(raw) == kept.state()
    restored = Learner.restored(QUICK, unpack(raw))
    assert restored.state() == kept.state()
    assert play(restored, after, len(before)) == play(kept, after, len(before))
    assert restored.state() == kept.state()


def taught(learner: Learner, n: int = 600) -> Learner:
    random = np.random.default_rng(7)
    for i in range(n):
        similarity = float(random.uniform(0.5, 1.0))
        considered = learner.consider("a question", "s", [near(f"p{i}", "s", similarity)], i)
        assert considered.best is not None
        learner.counted("s", considered.best.row)
        learner.learn("s", f"new{i}", considered, [Vote(f"p{i}", bool(random.random() < (similarity - 0.5) * 2))], i)
    return learner


def test_a_stricter_bound_holds_from_the_start_on_which_it_is_asked_for() -> None:
    """The threshold that was kept was found for a laxer one: until the next fit it would break the new promise."""
    lax = taught(Learner(LearnedSettings(bound=0.2)))
    state = unpack(pack(lax.state()))
    assert Learner.restored(LearnedSettings(bound=0.2), state).policy == lax.policy
    assert Learner.restored(LearnedSettings(bound=0.01), state).policy.threshold > lax.policy.threshold


def test_a_snapshot_does_not_change_while_the_learner_goes_on() -> None:
    learner = taught(Learner(LearnedSettings(bound=0.2)))
    state, raw = learner.state(), pack(learner.state())
    taught(learner, 50)
    assert pack(state) == raw


def test_a_full_state_is_small_enough_to_be_kept_every_few_hundred_requests() -> None:
    assert len(pack(taught(Learner(LearnedSettings(bound=0.2)), 4500).state())) < 400_000


@pytest.mark.parametrize("raw", [b"", b"PK", b"{}", pack(Learner().state())[:-40]])
def test_what_is_no_state_is_refused_as_such(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not the state"):
        unpack(raw)


def test_a_state_that_was_kept_before_there_was_rest_for_all_is_read_and_judged_anew() -> None:
    """Version 1: two sums a monitor, and a promise that said nothing of doubt."""
    learner = taught(Learner(LearnedSettings(bound=0.2)))
    with np.load(io.BytesIO(pack(learner.state())), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    head = orjson.loads(arrays["head"].tobytes())
    del head["all"]
    head |= {"v": 1, "promise": head["promise"].partition(", doubt")[0], "drift": [part[:2] for part in head["drift"]]}
    head["drift_by_scope"] = [[scope, [part[:2] for part in monitor]] for scope, monitor in head["drift_by_scope"]]
    out = io.BytesIO()
    np.savez_compressed(out, allow_pickle=False, **(arrays | {"head": np.frombuffer(orjson.dumps(head), dtype=np.uint8)}))
    restored = Learner.restored(LearnedSettings(bound=0.2), unpack(out.getvalue()))
    assert restored.state().lessons == learner.state().lessons
    assert restored.policy.shares
    assert play(restored, [("s", [(1, 0.9, True)], 1.0)]) is not None


def test_a_state_of_another_version_is_refused_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_engine.pipeline.learned_state.VERSION", 3)
    raw = pack(Learner().state())
    monkeypatch.undo()
    with pytest.raises(ValueError, match="version 3"):
        unpack(raw)
