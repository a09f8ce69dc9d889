"""A line of the user's file becomes the record that is sent, or an error row that says why it can't be. Pure."""

import json
import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson

from ..schemas.record import JsonObject, Lane
from ..schemas.requests import Identity
from ..schemas.responses import EngineInfo, ErrorPart, ResponseLine

MAX_LINE_BYTES = 4 << 20
"""Longer lines are not even parsed."""
MAX_RECORD_BYTES = (1 << 20) - (16 << 10)
"""Of one request as sent: Kafka's usual limit of 1 MiB less room for key, headers and framing."""

_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*"([^"\\]{1,256})"')
_PLAIN = frozenset({"prompt", "custom_id", "engine"})


@dataclass(frozen=True, slots=True)
class RowDefaults:
    """What the command line says about every row."""

    job: str
    model: str | None = None
    """Replaces the model of every row; rows without one ask for `auto`."""
    priority: Lane | None = None
    """For rows that name none, as `deadline`."""
    deadline: str | None = None
    use_cache: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """A request that may be sent."""

    custom_id: str
    record: JsonObject
    """custom_id, method, url, body, engine."""
    value: bytes
    """The same as it goes to the requests topic."""

    @property
    def body(self) -> JsonObject:
        body: JsonObject = self.record["body"]
        return body

    @property
    def engine(self) -> JsonObject:
        engine: JsonObject = self.record["engine"]
        return engine

    @property
    def bulk(self) -> bool:
        """Is it of the batch lane?"""
        return self.engine.get("priority") == Lane.BATCH.value

    def value_within(self, max_cost_usd: str) -> bytes:
        """The value with a cap of its own."""
        return orjson.dumps({**self.record, "engine": {**self.engine, "max_cost_usd": max_cost_usd}})

    def content_digest(self) -> bytes:
        """16 bytes, equal for rows that ask for the same; the order of JSON keys and the deadline do not count."""
        engine = {k: v for k, v in self.engine.items() if k != "deadline"}
        return blake2b(orjson.dumps([self.body, engine], option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be sent, whatever is tried."""

    custom_id: str
    code: str
    reason: str


class _Bad(Exception):
    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def id_digest(custom_id: str) -> bytes:
    """16 bytes by which a custom_id is remembered."""
    return blake2b(custom_id.encode(), digest_size=16).digest()


def parse_row(line: bytes, number: int, defaults: RowDefaults) -> Row | BadRow:
    """`line` without its line feed; `number` counts the rows from 1 and names rows without a custom_id: `row-<number>`."""
    custom_id = f"row-{number}"
    try:
        try:
            data = _load(line)
        except _Bad:
            custom_id = _salvaged(line, custom_id)
            raise
        custom_id = _custom_id(data, custom_id)
        record = _record(data, custom_id, defaults)
        _refuse_nul(line, record)
        value = orjson.dumps(record)
        if len(value) > MAX_RECORD_BYTES:
            raise _Bad("request_too_large", f"the request has {len(value):,} bytes, more than {MAX_RECORD_BYTES:,}: shorten or split it")
    except _Bad as bad:
        return BadRow(custom_id, bad.code, f"{bad}; the row was not sent")
    except TypeError:  # orjson reads deeper than it writes
        return BadRow(custom_id, "invalid_json", "the JSON is nested too deeply; the row was not sent")
    return Row(custom_id, record, value)


def oversized_row(head: bytes, number: int, size: int) -> BadRow:
    """For a line longer than `MAX_LINE_BYTES`, of which only the head was read."""
    found = _CUSTOM_ID.search(head)
    custom_id = found.group(1).decode(errors="replace") if found else f"row-{number}"
    return BadRow(
        custom_id, "request_too_large", f"the line has {size:,} bytes, more than {MAX_RECORD_BYTES:,}: shorten or split it; it was not sent"
    )


def _load(line: bytes) -> JsonObject:
    try:
        data = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode()
        except UnicodeDecodeError as wrong:
            raise _Bad("invalid_utf8", f"byte {wrong.start} of the line is not UTF-8: write the file as UTF-8") from None
        if "surrogate" in str(error):
            raise _Bad("invalid_json", "a lone surrogate (half of a character) stands in the text: replace it") from None
        raise _Bad("invalid_json", f"the line is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise _Bad("invalid_request", "a row is a JSON object with custom_id and body, or with prompt")
    return data


def _salvaged(line: bytes, default: str) -> str:
    """The custom_id of a row with broken characters elsewhere: only json's own reader takes those."""
    try:
        data = json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return default
    found = data.get("custom_id") if isinstance(data, dict) else None
    if not isinstance(found, str) or not 0 < len(found) <= 256 or "\ufffd" in found:
        return default
    return default if any("\ud800" <= c <= "\udfff" for c in found) else found


def _custom_id(data: JsonObject, default: str) -> str:
    custom_id = data.get("custom_id")
    if custom_id is None:
        return default
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= 256:
        raise _Bad("invalid_request", "custom_id must be a text of 1 to 256 characters")
    return custom_id


def _record(data: JsonObject, custom_id: str, defaults: RowDefaults) -> JsonObject:
    for name, wanted in (("method", "POST"), ("url", "/v1/chat/completions")):
        if data.get(name, wanted) != wanted:
            raise _Bad("invalid_request", f"{name} must be {wanted!r}, not {data[name]!r}")
    body = dict(_body(data))
    if defaults.model is not None:
        body["model"] = defaults.model
    elif body.get("model") is None:
        body["model"] = "auto"
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
        "engine": _engine(data, defaults),
    }


def _body(data: JsonObject) -> JsonObject:
    body = data.get("body")
    if body is None and "prompt" in data:
        prompt = data["prompt"]
        if not isinstance(prompt, str) or not prompt:
            raise _Bad("missing_messages", "prompt must be a text")
        rest = {k: v for k, v in data.items() if k not in _PLAIN}
        return {**rest, "messages": [{"role": "user", "content": prompt}]}
    if not isinstance(body, dict):
        raise _Bad("missing_messages", "the row has neither a body with messages nor a prompt")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _Bad("missing_messages", "body.messages is missing or empty: give at least one message")
    return body


def _engine(data: JsonObject, defaults: RowDefaults) -> JsonObject:
    given = data.get("engine")
    if given is not None and not isinstance(given, dict):
        raise _Bad("invalid_request", "engine must be a JSON object")
    engine: JsonObject = {**(given or {}), "job": defaults.job}
    if defaults.priority is not None and engine.get("priority") is None:
        engine["priority"] = defaults.priority.value
    if defaults.deadline is not None and engine.get("deadline") is None:
        engine["deadline"] = defaults.deadline
    if not defaults.use_cache:
        engine["use_cache"] = False
    return engine


def _refuse_nul(line: bytes, record: JsonObject) -> None:
    # The escape is rare; a doubled backslash before it makes it harmless, so look at the parsed texts.
    if b"\\u0000" in line and _has_nul(record):
        raise _Bad("invalid_request", "the text contains a NUL character, which providers refuse")


def _has_nul(value: Any) -> bool:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            if "\0" in item:
                return True
        elif isinstance(item, dict):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return False


def repeat_digest(row: Row) -> bytes | None:
    """Equal for rows that repeat a prompt at a temperature above 0 without asking for variety; None for all others."""
    temperature = row.body.get("temperature")
    if not isinstance(temperature, int | float) or temperature <= 0:
        return None
    engine = row.engine
    if engine.get("use_cache") is False:
        return None
    return blake2b(orjson.dumps([row.body, engine.get("sample_index")], option=orjson.OPT_SORT_KEYS), digest_size=8).digest()


def local_error_line(tenant: str, job: str, bad: BadRow, lane: str = Lane.STANDARD.value) -> bytes:
    """One line of the answers file for a row that was not sent, in the form of a response."""
    stable = blake2b(f"{job}\n{bad.custom_id}\n{bad.code}".encode(), digest_size=16).hexdigest()
    line = ResponseLine(
        id=f"resp_{stable}",
        custom_id=bad.custom_id,
        error=ErrorPart(code=bad.code, message=bad.reason),
        engine=EngineInfo(tenant=tenant, job=job, lane=lane, latency_ms=0),
    )
    return orjson.dumps(line.model_dump(mode="json"))


def request_key(tenant: str, job: str, custom_id: str) -> bytes:
    """The key of a request and of its response."""
    return Identity.model_construct(tenant=tenant, job=job, custom_id=custom_id).key


def job_prefix(tenant: str, job: str) -> bytes:
    """What the keys of all responses of a job begin with, and of no other job's."""
    return b"".join(b"%d:%s" % (len(p), p) for p in (tenant.encode(), job.encode()))


def custom_id_of(key: bytes, prefix: bytes) -> str | None:
    """The custom_id in a response's key; None where the key is not of this job."""
    if not key.startswith(prefix):
        return None
    size, colon, custom_id = key[len(prefix) :].partition(b":")
    if not colon or not size.isdigit() or int(size) != len(custom_id):
        return None
    return custom_id.decode(errors="replace")
