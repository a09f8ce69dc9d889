"""Experiments: the same unit is always in the same variant, shares and weights are kept, and nobody's own choice is taken away."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine.pipeline.experiments import Experiment, Experiments, Variant
from inference_engine.pipeline.ingest import admit
from inference_engine.schemas.requests import Dimensions

from .support import NOW, body, identity
from .test_ingest import DOOR, line

TWO = (Variant("as-now"), Variant("small", model="small"))
BY_USER = Experiment("exp", TWO, unit="user")
names = st.text(min_size=1, max_size=20)


@given(names, names, names)
def test_a_user_is_in_one_variant_whatever_else_a_request_says(user: str, job: str, custom_id: str) -> None:
    first = BY_USER.variant_of(identity("r1"), user)
    assert first is not None
    assert BY_USER.variant_of(identity(custom_id, job), user) == first


@given(names, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_takes_more_units_in_and_moves_none(user: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    before, after = (replace(BY_USER, share=share).variant_of(identity(), user) for share in (low, high))
    assert before in (None, after)


def test_units_are_spread_by_weight_and_share() -> None:
    experiment = Experiment("exp", (Variant("a", 3), Variant("b")), share=0.5)
    found = [experiment.variant_of(identity(f"r{i}"), "") for i in range(8_000)]
    assert found.count(None) == pytest.approx(4_000, abs=200)
    assert found.count("a") == pytest.approx(3_000, abs=200)


def test_two_experiments_divide_users_independently() -> None:
    other = replace(BY_USER, name="other")
    both = [BY_USER.variant_of(identity(), f"u{i}") == other.variant_of(identity(), f"u{i}") for i in range(4_000)]
    assert sum(both) == pytest.approx(2_000, abs=150)


def test_users_of_two_tenants_are_two_users() -> None:
    same = [BY_USER.variant_of(identity(), f"u{i}") == BY_USER.variant_of(identity(tenant="x"), f"u{i}") for i in range(4_000)]
    assert sum(same) == pytest.approx(2_000, abs=150)


def test_who_has_no_user_takes_no_part_in_an_experiment_on_users() -> None:
    assert Experiments((BY_USER,)).assigned(identity(), Dimensions(), free=True) == Dimensions()


def test_the_first_experiment_that_takes_a_request_has_it() -> None:
    chat = replace(BY_USER, name="chat", features=frozenset({"chat"}))
    ours = replace(BY_USER, name="ours", tenants=frozenset({"t"}))
    both = Experiments((chat, ours))
    assert both.assigned(identity(), Dimensions(user_id="u", feature_name="chat"), free=True).experiment_id == "chat"
    assert both.assigned(identity(), Dimensions(user_id="u"), free=True).experiment_id == "ours"
    assert both.assigned(identity(tenant="x"), Dimensions(user_id="u"), free=True).experiment_id == ""


def test_who_names_a_variant_keeps_it_and_who_names_an_experiment_gets_a_variant_of_it() -> None:
    running = Experiments((replace(BY_USER, name="first"), BY_USER))
    own = Dimensions(user_id="u", experiment_id="theirs", experiment_variant="b")
    assert running.assigned(identity(), own, free=True) == own
    named = running.assigned(identity(), Dimensions(user_id="u", experiment_id="exp"), free=True)
    assert (named.experiment_id, named.experiment_variant) == ("exp", BY_USER.variant_of(identity(), "u"))
    unknown = Dimensions(user_id="u", experiment_id="unknown")
    assert running.assigned(identity(), unknown, free=True) == unknown


@pytest.mark.parametrize(
    ("asked", "engine", "taken"), [("auto", {}, True), ("small", {}, False), ("auto", {"preferred_model": "big"}, False)]
)
def test_only_requests_that_leave_the_choice_to_the_engine_take_part(asked: str, engine: dict[str, str], taken: bool) -> None:
    door = replace(DOOR, experiments=Experiments((BY_USER,)))
    request = admit(line(body={**body(), "model": asked}, engine={"user_id": "u", **engine}), "t", NOW, door)
    assert (request.dimensions.experiment_id == "exp") is taken


def test_an_experiment_changes_no_fingerprint_so_that_nothing_is_paid_again_for_it() -> None:
    door = replace(DOOR, experiments=Experiments((BY_USER,)))
    raw = line(engine={"user_id": "u"})
    assert admit(raw, "t", NOW, door).flight == admit(raw, "t", NOW, DOOR).flight


@pytest.mark.parametrize(
    ("variants", "share", "said"),
    [
        ((Variant("a"),), 1.0, "two variants"),
        ((Variant("a"), Variant("a")), 1.0, "a name of its own"),
        ((Variant("a"), Variant("b", 0)), 1.0, "above 0"),
        (TWO, 1.5, "between 0 and 1"),
        ((Variant("a"), Variant("b", policy="quantile", model="m")), 1.0, "not both"),
    ],
)
def test_an_experiment_that_can_not_be_is_refused(variants: tuple[Variant, ...], share: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Experiment("exp", variants, share=share)
