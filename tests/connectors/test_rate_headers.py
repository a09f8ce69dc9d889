"""What providers say about their limits is read as they write it."""

import pytest
from multidict import CIMultiDict

from inference_engine.connectors.providers import build_providers, keys_in
from inference_engine.connectors.providers.accounts import Accounts
from inference_engine.connectors.providers.rate_headers import rates_seen, seconds_of, seconds_until
from inference_engine.pipeline.rates import RateSeen

NOW = 1_795_600_000.0  # 2026-11-25T09:46:40Z


def test_openai_says_limit_rest_and_how_long_until_it_is_full() -> None:
    headers = CIMultiDict(
        {
            "x-ratelimit-limit-requests": "500",
            "X-RateLimit-Remaining-Requests": "499",
            "x-ratelimit-reset-requests": "120ms",
            "x-ratelimit-limit-tokens": "30000",
            "x-ratelimit-remaining-tokens": "29000",
            "x-ratelimit-reset-tokens": "1m2s",
        }
    )
    assert rates_seen(headers, NOW) == (RateSeen("requests", 500, 499, 0.12), RateSeen("tokens", 30_000, 29_000, 62))


def test_anthropic_says_input_and_output_apart_and_a_moment() -> None:
    headers = CIMultiDict(
        {
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "49",
            "anthropic-ratelimit-requests-reset": "2026-11-25T09:46:42Z",
            "anthropic-ratelimit-tokens-limit": "48000",
            "anthropic-ratelimit-tokens-remaining": "8000",
            "anthropic-ratelimit-input-tokens-limit": "40000",
            "anthropic-ratelimit-input-tokens-remaining": "40000",
            "anthropic-ratelimit-output-tokens-limit": "8000",
            "anthropic-ratelimit-output-tokens-remaining": "8000",
        }
    )
    kinds = {seen.kind: (seen.limit, seen.remaining) for seen in rates_seen(headers, NOW)}
    assert kinds == {"requests": (50, 49), "input_tokens": (40_000, 40_000), "output_tokens": (8_000, 8_000)}


@pytest.mark.parametrize(
    "headers", [{}, {"x-ratelimit-limit-requests": "many", "x-ratelimit-remaining-requests": "5"}, {"x-ratelimit-limit-tokens": "5"}]
)
def test_what_cannot_be_read_is_as_if_it_had_not_been_said(headers: dict[str, str]) -> None:
    assert rates_seen(CIMultiDict(headers), NOW) == ()


def test_durations_and_moments_are_read_as_providers_write_them() -> None:
    assert [seconds_of(text) for text in ("6m0s", "20ms", "1h2m3.5s", "7", "soon", None, "nan")] == [360, 0.02, 3723.5, 7, None, None, None]
    assert seconds_until("2026-11-25T09:46:50Z", NOW) == 10
    assert seconds_until("Wed, 25 Nov 2026 09:46:50 GMT", NOW) == 10
    assert seconds_until("tomorrow", NOW) is None


async def test_a_setting_with_several_keys_makes_an_account_of_each() -> None:
    built = build_providers(openai_api_key="a, b,a ,", anthropic_api_key="c")
    openai, anthropic = built["openai"], built["anthropic"]
    assert keys_in("a, b,a ,") == ["a", "b"]
    assert isinstance(openai, Accounts)
    assert len(openai.accounts) == 2
    assert not isinstance(anthropic, Accounts)
    for provider in built.values():
        await provider.close()
