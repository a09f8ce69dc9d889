"""Does an answer have the form that its request asked for? JSON, and the part of JSON Schema that providers take for structured output.

Known keywords: type, enum, const, properties, required, additionalProperties, items, prefixItems, minItems, maxItems, uniqueItems,
minLength, maxLength, minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf, anyOf, oneOf, allOf, $ref into the schema itself.
Others are passed over (a pattern of a stranger's may take for ever), so an answer without a violation is one of which none was found.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import orjson

from ..schemas.record import JsonObject

_MOST_DEPTH = 60
"""Of schemas that refer to themselves."""
_MOST_STEPS = 20_000
"""After which the rest is passed over: such schemas can branch without end."""
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "number": (int, float), "integer": (int, float), "boolean": (bool,),
    "null": (type(None),),
}  # fmt: skip


def asks_for_form(asked: JsonObject) -> bool:
    """Whether the request names a form that can be checked."""
    form = asked.get("response_format")
    return isinstance(form, dict) and form.get("type") in ("json_object", "json_schema")


def violation(asked: JsonObject, text: str | None) -> str | None:
    """What is wrong with the form of an answer; None: nothing that was found, or there was no form to have."""
    if not asks_for_form(asked):
        return None
    form = asked["response_format"]
    try:
        value = orjson.loads(text or "")
    except orjson.JSONDecodeError as error:
        return f"it is not JSON ({error})"
    if form["type"] == "json_object":
        return None if isinstance(value, dict) else "it is no JSON object"
    inner = form.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        return None
    return next(_violations(value, schema, _Root(schema), "the answer", 0), None)


@dataclass(slots=True)
class _Root:
    """The whole schema, and how much looking is left."""

    schema: JsonObject
    steps: int = _MOST_STEPS


def _violations(value: Any, schema: Any, root: _Root, where: str, depth: int) -> Iterator[str]:
    if schema is False:
        yield f"{where} is not allowed"
    root.steps -= 1
    if not isinstance(schema, dict) or depth > _MOST_DEPTH or root.steps < 0:
        return
    if isinstance(schema.get("$ref"), str):
        yield from _violations(value, _target(root.schema, schema["$ref"]), root, where, depth + 1)
    kinds = schema.get("type")
    names = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    if names and not any(_is(value, name) for name in names):
        yield f"{where} is no {' or '.join(map(str, names))}"
        return
    if isinstance(schema.get("enum"), list) and not any(_same(value, one) for one in schema["enum"]):
        yield f"{where} is none of the allowed values"
    if "const" in schema and not _same(value, schema["const"]):
        yield f"{where} is not the one allowed value"
    yield from _combined(value, schema, root, where, depth)
    if isinstance(value, dict):
        yield from _object(value, schema, root, where, depth)
    elif isinstance(value, list):
        yield from _array(value, schema, root, where, depth)
    elif isinstance(value, str):
        yield from _string(value, schema, where)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _number(value, schema, where)


def _combined(value: Any, schema: JsonObject, root: _Root, where: str, depth: int) -> Iterator[str]:
    for part in _list(schema, "allOf"):
        yield from _violations(value, part, root, where, depth + 1)
    for name in ("anyOf", "oneOf"):
        parts = _list(schema, name)
        fitting = sum(next(_violations(value, part, root, where, depth + 1), None) is None for part in parts)
        if parts and (fitting == 0 or (name == "oneOf" and fitting > 1)):
            yield f"{where} fits {'none' if fitting == 0 else 'more than one'} of the allowed forms"


def _object(value: JsonObject, schema: JsonObject, root: _Root, where: str, depth: int) -> Iterator[str]:
    known = schema.get("properties")
    known = known if isinstance(known, dict) else {}
    for name in _list(schema, "required"):
        if name not in value:
            yield f"{where} has no {name!r}"
    extra = schema.get("additionalProperties", True)
    for name, item in value.items():
        inner = known.get(name, extra if "patternProperties" not in schema else True)
        if inner is False:
            yield f"{where} has {name!r}, which is not allowed"
        else:
            yield from _violations(item, inner, root, f"{where}.{name}", depth + 1)


def _array(value: list[Any], schema: JsonObject, root: _Root, where: str, depth: int) -> Iterator[str]:
    if not _at_least(len(value), schema.get("minItems")) or not _at_most(len(value), schema.get("maxItems")):
        yield f"{where} has {len(value)} items"
    first = _list(schema, "prefixItems")
    for i, item in enumerate(value):
        yield from _violations(item, first[i] if i < len(first) else schema.get("items", True), root, f"{where}[{i}]", depth + 1)
    if schema.get("uniqueItems") is True:
        keys = sorted(orjson.dumps(item, option=orjson.OPT_SORT_KEYS) for item in value)
        if any(one == other for one, other in pairwise(keys)):
            yield f"{where} repeats an item"


def _string(value: str, schema: JsonObject, where: str) -> Iterator[str]:
    if not _at_least(len(value), schema.get("minLength")) or not _at_most(len(value), schema.get("maxLength")):
        yield f"{where} has {len(value)} characters"


def _number(value: float, schema: JsonObject, where: str) -> Iterator[str]:
    low, high, step = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum"), schema.get("multipleOf")
    fits = _at_least(value, schema.get("minimum")) and _at_most(value, schema.get("maximum"))
    if not fits or value in (low, high) or not (_at_least(value, low) and _at_most(value, high)):
        yield f"{where} is out of bounds"
    if _is(step, "integer") and step and value % step:
        yield f"{where} is no multiple of {step}"


def _is(value: Any, name: Any) -> bool:
    wanted = _TYPES.get(name) if isinstance(name, str) else None
    if wanted is None:
        return True  # no type that we know
    if isinstance(value, bool):
        return bool in wanted
    return isinstance(value, wanted) and (name != "integer" or not isinstance(value, float) or value.is_integer())


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, bool) is isinstance(other, bool) and bool(one == other)


def _list(schema: JsonObject, name: str) -> list[Any]:
    found = schema.get(name)
    return found if isinstance(found, list) else []


def _at_least(value: float, bound: Any) -> bool:
    return not _is(bound, "number") or bool(value >= bound)


def _at_most(value: float, bound: Any) -> bool:
    return not _is(bound, "number") or bool(value <= bound)


def _target(root: JsonObject, reference: str) -> Any:
    """Of `#/$defs/name`; True, which allows everything, for what is elsewhere."""
    found: Any = root
    for part in reference.removeprefix("#").strip("/").split("/") if reference.startswith("#") else ("",):
        if part:
            found = found.get(part.replace("~1", "/").replace("~0", "~"), True) if isinstance(found, dict) else True
        elif not reference.startswith("#"):
            return True
    return found
