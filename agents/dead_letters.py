"""What travels with a dead letter besides the original bytes."""

from .safe import DeadLetter, Delivered


def dead_letter_headers(event: Delivered, error: DeadLetter) -> list[tuple[str, bytes]]:
    """Where it came from and why it is here, after the headers that it came with."""
    return [
        *event.headers,
        ("error.class", error.error_class.encode()),
        ("error.message", str(error).encode()),
        ("source.topic", event.topic.encode()),
        ("source.partition", b"%d" % event.partition),
        ("source.offset", b"%d" % event.offset),
    ]
