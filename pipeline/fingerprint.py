"""Fingerprints and scopes: which requests may exchange answers.

Two requests have one fingerprint only where tenant, model, messages, every sampling parameter, tools, response format, seed and
sample index agree. The canonical form folds Unicode to NFC and strips outer white space of texts; it never touches symbols, case or
punctuation, since "C" and "C++" are different questions. Fields are length-prefixed before hashing, so that no two lists of fields
run into one another.
"""

import hashlib
import unicodedata
from collections.abc import Iterable
from typing import Any

import orjson

from ..schemas.record import JsonObject

IGNORED = frozenset(
    {
        "model",
        "messages",
        "stream",
        "stream_options",
        "user",
        "metadata",
        "store",
        "safety_identifier",
        "prompt_cache_key",
    }
)
"""Body fields that don't change what the answer says."""


def digest(fields: Iterable[bytes]) -> str:
    """Hex SHA-256 over length-prefixed fields."""
    h = hashlib.sha256()
    for field in fields:
        h.update(len(field).to_bytes(8, "big"))
        h.update(field)
    return h.hexdigest()


def _text(text: str) -> str:
    stripped = text.strip()
    return stripped if stripped.isascii() else unicodedata.normalize("NFC", stripped)


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _part(part: Any) -> Any:
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return {**part, "text": _text(part["text"])}
    return part


def _message(message: JsonObject) -> JsonObject:
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": _text(content)}
    if isinstance(content, list):
        return {**message, "content": [_part(p) for p in content]}
    return message


def _dump(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _canonical(body: JsonObject) -> tuple[list[bytes], bytes]:
    """Each message and all other parameters, as canonical JSON."""
    messages = [_dump(_message(m)) for m in body["messages"]]
    rest = {k: _number(v) for k, v in body.items() if k not in IGNORED and v is not None}
    return messages, _dump(rest)


def fingerprint_and_scope(tenant: str, model: str, body: JsonObject, sample_index: int | None) -> tuple[str, str]:
    """Returns (fingerprint, scope) of a validated body.

    The scope leaves out the last message only: requests of one scope differ in nothing but their last turn.
    """
    messages, rest = _canonical(body)
    index = b"" if sample_index is None else b"%d" % sample_index
    head = [b"v1", tenant.encode(), model.encode(), rest, index]
    return digest([b"fingerprint", *head, *messages]), digest([b"scope", *head, *messages[:-1]])


def flight_id(fingerprint: str, identity_key: bytes) -> str:
    """The id under which a request would be paid: the same however often the request is delivered."""
    return digest([b"flight", fingerprint.encode(), identity_key])


def unshared(fingerprint: str, identity_key: bytes) -> str:
    """The fingerprint of a request that must not share: nobody else can have it."""
    return digest([b"unshared", fingerprint.encode(), identity_key])


def partition_of(hex_digest: str, partitions: int) -> int:
    """The partition of a fingerprint or scope; digests are uniform, so their head is hash enough."""
    return int(hex_digest[:8], 16) % partitions
