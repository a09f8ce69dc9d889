"""Times as people write them. Pure: the caller says what time it is."""

from datetime import UTC, datetime, timedelta

from ..pipeline.errors import ConfigError
from ..pipeline.ingest import parse_span_s


def absolute_deadline(text: str, now: datetime) -> str:
    """`24h`, `3600` (seconds) or RFC 3339 to RFC 3339 in UTC, so that asking again later does not move it. Raises `ConfigError`."""
    span = parse_span_s(text)
    if span is not None:
        at = now + timedelta(seconds=span)
    else:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            raise ConfigError(
                f"--deadline {text!r} is neither seconds, nor a span like 24h, nor a time like 2026-01-31T18:00:00Z"
            ) from None
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
    if at <= now:
        raise ConfigError(f"--deadline {text!r} is in the past: every row would be refused")
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def short_span(seconds: float) -> str:
    """`4 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    left = max(0, round(seconds))
    for size, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if left >= size:
            rest = left % size // part
            return f"{left // size} {name}" + (f" {rest} {part_name}" if rest else "")
    return f"{left} s"
