"""What a request may say about itself is obeyed by the whole engine: sharing, tenants, deadlines, providers."""

from .conftest import MakeEngine
from .engine import MODEL, Engine, row, text_of
from .waiting import until

CLAUDE = "claude-haiku-4-5"


def test_without_the_cache_every_request_is_paid_and_with_it_only_the_first(shared: Engine) -> None:
    text = "rules: say something new each time"
    rows = [row(f"n{i}", text, use_cache=False) for i in range(3)] + [row(f"c{i}", text) for i in range(3)]
    shared.ask("no-cache", rows)
    assert shared.provider.billed(MODEL, [text])[text] == 4


def test_samples_of_one_prompt_are_paid_one_by_one_and_the_same_sample_once(shared: Engine) -> None:
    text = "rules: draw a sample"
    shared.ask("samples", [row(f"s{i}", text, sample_index=i % 3) for i in range(6)])
    assert shared.provider.billed(MODEL, [text])[text] == 3


def test_tenants_never_share_an_answer(shared: Engine) -> None:
    text = "rules: is this mine?"
    for tenant in ("one", "two"):
        shared.ask("tenants", [row("r0", text), row("r1", text)], tenant=tenant)
    assert shared.provider.billed(MODEL, [text])[text] == 2
    for tenant in ("one", "two"):
        assert {line.engine.tenant for line in shared.responses() if line.engine.job == "tenants" and line.engine.tenant == tenant} == {
            tenant
        }


def test_a_deadline_that_is_past_is_an_error_and_costs_nothing(shared: Engine) -> None:
    text = "rules: too late"
    answers = shared.ask("late", [row("r0", text, deadline="2020-01-01T00:00:00Z")])
    assert answers["r0"].error is not None
    assert answers["r0"].error.code == "deadline_passed"
    assert not shared.provider.billed(MODEL, [text])


def test_anthropics_models_answer_in_openais_form_at_their_own_price(shared: Engine) -> None:
    text = "rules: bonjour Claude"
    answers = shared.ask("claude", [row(f"r{i}", text, model=CLAUDE) for i in range(3)])
    assert len({text_of(line) for line in answers.values()}) == 1
    assert shared.provider.billed(CLAUDE, [text])[text] == 1
    assert sum(shared.pico(line) for line in answers.values()) == shared.provider.charged(CLAUDE, [text]) > 0


def test_after_a_storm_of_429_every_request_is_answered_and_paid_once(shared: Engine) -> None:
    texts = [f"rules: storm {i}" for i in range(100)]
    shared.provider.fail("429", match="rules: storm", count=60, retry_after=0.5)
    answers = shared.ask("storm", [row(f"r{i}", text) for i, text in enumerate(texts)])
    assert all(line.error is None for line in answers.values())
    assert set(shared.provider.billed(MODEL, texts).values()) == {1}
    assert len([r for r in shared.ledger().records if r.type == "unpaid"]) >= 60


def test_calls_that_fail_for_good_or_were_charged_for_nothing_are_told_and_accounted(shared: Engine) -> None:
    texts = {kind: f"rules: fault [[fault:{kind}]]" for kind in ("400", "no-choices", "truncated", "no-usage", "drop")}
    before = shared.ledger()
    answers = shared.ask("faults", [row(kind, text) for kind, text in texts.items()], within_s=90)
    assert {kind for kind, line in answers.items() if line.error is None} == set()
    accounts = shared.ledger()
    charged = shared.provider.charged(MODEL, texts.values())
    certain = accounts.certain - before.certain
    assert certain <= charged <= certain + accounts.caps - before.caps
    assert all(times <= 3 for times in shared.provider.billed(MODEL, texts.values()).values())


def test_while_the_provider_is_down_requests_fail_after_the_stated_time_and_are_answered_once_it_is_back(make_engine: MakeEngine) -> None:
    engine = make_engine(GIVE_UP_SECONDS="2", ROUTING_CIRCUIT_BREAKER_THRESHOLD="1000")
    engine.start_worker()
    engine.provider.stop()
    rows = [row(f"r{i}", f"is anybody there, {i}?") for i in range(5)]
    answers = engine.ask("down", rows)
    assert {line.error.code for line in answers.values() if line.error is not None} == {"provider_unavailable"}
    assert len(answers) == 5
    engine.provider.start()
    again = engine.ask("up", rows)
    assert [line.error for line in again.values() if line.error is not None] == []
    accounts = until(lambda: found if not (found := engine.ledger()).open else None, "every intent has its outcome")
    assert accounts.certain == sum(line.pico for line in engine.provider.bill())
