"""Deadlines and spans as people write them."""

from datetime import UTC, datetime

import pytest

from inference_engine.cli.when import absolute_deadline, short_span
from inference_engine.pipeline.errors import ConfigError

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24h", "2026-01-02T12:00:00Z"),
        ("3600", "2026-01-01T13:00:00Z"),
        ("2026-01-05", "2026-01-05T00:00:00Z"),
        ("2026-01-01T18:00:00+02:00", "2026-01-01T16:00:00Z"),
    ],
)
def test_every_form_becomes_one_moment_in_utc(text: str, expected: str) -> None:
    assert absolute_deadline(text, NOW) == expected


@pytest.mark.parametrize("text", ["tomorrow", "2025-12-31", "-5"])
def test_nonsense_and_the_past_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--deadline"):
        absolute_deadline(text, NOW)


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (86400, "1 d")])
def test_spans_have_two_units_at_most(seconds: float, text: str) -> None:
    assert short_span(seconds) == text
