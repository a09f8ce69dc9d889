"""OpenAI chat completion requests as requests of its responses API, and the answers back.

A field that would change the answer and has no counterpart is `Rejected`, never dropped in silence. Dropped are only `seed` (a
wish), marks of the prompt cache on what the assistant said, which have no place there, and `stream_options`: a stream always tells
its usage here. Nothing is stored at OpenAI unless the request says `store`, which is the other way round there.
"""

from typing import Any

from ...pipeline.errors import Charged, Rejected
from ...pipeline.models import Model
from ...pipeline.ports import ProviderReply
from ...schemas.record import JsonObject
from .chat_form import chat_usage, tier_named
from .failures import same_model, unreadable
from .fields import Limited, Put, as_is, convert
from .responses_usage import read_responses_usage

_TO = Limited("OpenAI's responses API")
_IGNORED = {"model", "messages", "max_tokens", "max_completion_tokens", "store", "seed", "stream_options"}
_INCOMPLETE = {"max_output_tokens": "length", "content_filter": "content_filter"}


def to_responses(model: Model, body: JsonObject) -> JsonObject:
    """The request. Raises `Rejected` for what this API can't be asked."""
    request: JsonObject = {"model": model.provider_model, "store": bool(body.get("store"))}
    request["input"] = [item for message in body.get("messages") or [] for item in _items(message)]
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit:
        request["max_output_tokens"] = limit
    convert(request, body, _FIELDS, _IGNORED, _TO)
    return request


# --- fields ----------------------------------------------------------------------------------------------------------


def _response_format(request: JsonObject, value: Any) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "json_schema" and isinstance(value.get("json_schema"), dict):
        request.setdefault("text", {})["format"] = {"type": kind, **value["json_schema"]}
    elif kind in ("text", "json_object"):
        request.setdefault("text", {})["format"] = {"type": kind}
    else:
        raise _TO.cannot("a response_format other than text, json_object or json_schema")


def _verbosity(request: JsonObject, value: Any) -> None:
    request.setdefault("text", {})["verbosity"] = value


def _effort(request: JsonObject, value: Any) -> None:
    request["reasoning"] = {"effort": value}


def _tools(request: JsonObject, value: Any) -> None:
    made = []
    for tool in value:
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or "name" not in function:
            raise _TO.cannot("tools other than functions")
        # Without a word a function is strict here, and is not in a chat completion.
        made.append({"type": "function", "parameters": {}, **function, "strict": bool(function.get("strict"))})
    if made:
        request["tools"] = made


def _tool_choice(request: JsonObject, value: Any) -> None:
    if value in ("auto", "none", "required"):
        request["tool_choice"] = value
    elif isinstance(value, dict) and isinstance(value.get("function"), dict):
        request["tool_choice"] = {"type": "function", "name": value["function"].get("name")}
    else:
        raise _TO.cannot(f"tool_choice {value!r}")


_SAME = (
    "temperature", "top_p", "parallel_tool_calls", "service_tier", "user", "safety_identifier", "metadata", "stream",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
)  # fmt: skip
_FIELDS: dict[str, Put] = {
    **_TO.without_counterpart(),
    **{name: as_is(name) for name in _SAME},
    "response_format": _response_format,
    "verbosity": _verbosity,
    "reasoning_effort": _effort,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "stop": _TO.only("stop", [], ""),
}


# --- messages --------------------------------------------------------------------------------------------------------


def _items(message: Any) -> list[JsonObject]:
    """A message, or a message and the calls that it made."""
    role = message.get("role") if isinstance(message, dict) else None
    if role in ("system", "developer", "user"):
        return [{"role": role, "content": _content(message.get("content"), "input_text")}]
    if role == "tool":
        output = _content(message.get("content"), "input_text")
        return [{"type": "function_call_output", "call_id": message.get("tool_call_id"), "output": output}]
    if role == "assistant":
        said = [{"role": role, "content": _content(message["content"], "output_text")}] if message.get("content") else []
        return said + [_call(call) for call in message.get("tool_calls") or ()]
    raise _TO.cannot(f"a message of role {role!r}")


def _call(call: Any) -> JsonObject:
    try:
        function = call["function"]
        return {"type": "function_call", "call_id": call["id"], "name": function["name"], "arguments": function["arguments"]}
    except (KeyError, TypeError):
        raise Rejected("a tool call in the conversation is not a function with arguments; correct it and ask again") from None


def _content(content: Any, text_type: str) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Rejected("the content of a message is a text or a list of parts; correct it and ask again")
    return [_part(part, text_type) for part in content]


def _part(part: Any, text_type: str) -> JsonObject:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        made: JsonObject = {"type": text_type, "text": part.get("text", "")}
    elif kind == "refusal" and text_type == "output_text":
        return {"type": kind, "refusal": part.get("refusal", "")}
    elif kind == "image_url" and text_type == "input_text":
        image = part.get("image_url")
        image = {"url": image} if isinstance(image, str) else image or {}
        made = {"type": "input_image", "image_url": image.get("url"), "detail": image.get("detail") or "auto"}
    else:
        raise _TO.cannot(f"content of type {kind!r}")
    if "prompt_cache_breakpoint" in part and text_type == "input_text":
        made["prompt_cache_breakpoint"] = part["prompt_cache_breakpoint"]
    return made


# --- answers ---------------------------------------------------------------------------------------------------------


def read_response(provider: str, asked: str, reply: JsonObject, request_id: str, tier_from: Any) -> ProviderReply:
    """The reply in the form of a chat completion. `tier_from`: the service tier as the provider names it.

    Raises `Ambiguous` and `Charged` as `chat_form.read_completion` does; a response that failed is `Charged` by its usage.
    """
    usage = read_responses_usage(provider, reply.get("usage"))
    if _counted(reply.get("tool_usage")):
        raise unreadable(provider, "with tools of its own, which have no price here", "usage_unpriced")
    if not same_model(asked, reply.get("model")):
        raise unreadable(provider, f"as model {str(reply.get('model'))[:80]!r} in place of {asked!r}", "wrong_model")
    message, finish = _message(reply.get("output")), _finish(reply)
    if message is None or finish is None:
        said = f"{provider} billed a response without readable output (status {str(reply.get('status'))[:40]}); ask again"
        raise Charged(said, usage=usage, service_tier=tier_named(tier_from), request_id=request_id)
    if finish == "stop" and message.get("tool_calls"):
        finish = "tool_calls"
    made = reply.get("created_at")
    body: JsonObject = {"id": reply.get("id"), "object": "chat.completion", "created": int(made) if isinstance(made, int | float) else 0}
    body |= {"model": reply.get("model"), "service_tier": reply.get("service_tier")}
    body["choices"] = [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}]
    details = reply["usage"].get("output_tokens_details")
    body["usage"] = {**chat_usage(usage), **({"completion_tokens_details": details} if details else {})}
    return ProviderReply(body, usage, finish, request_id, tier_named(tier_from))


def _counted(usage: Any) -> bool:
    """Whether something in it is counted at all, however deep."""
    if isinstance(usage, dict):
        return any(_counted(value) for value in usage.values())
    return isinstance(usage, int | float) and usage > 0


def _finish(reply: JsonObject) -> str | None:
    status = reply.get("status")
    if status == "completed":
        return "stop"
    reason = (reply.get("incomplete_details") or {}).get("reason")
    return _INCOMPLETE.get(reason, str(reason)) if status == "incomplete" and reason else None


def _message(output: Any) -> JsonObject | None:
    """None where something in it can't be read."""
    texts: list[str] = []
    refusals: list[str] = []
    calls: list[JsonObject] = []
    if not isinstance(output, list):
        return None
    for item in output:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "reasoning":
            continue
        if kind == "function_call" and isinstance(item.get("name"), str) and isinstance(item.get("arguments"), str):
            function = {"name": item["name"], "arguments": item["arguments"]}
            calls.append({"id": item.get("call_id"), "type": "function", "function": function})
        elif kind != "message" or not _read_parts(item.get("content"), texts, refusals):
            return None
    message: JsonObject = {"role": "assistant", "content": "".join(texts) if texts or not (calls or refusals) else None}
    message["refusal"] = "".join(refusals) if refusals else None
    if calls:
        message["tool_calls"] = calls
    return message


def _read_parts(parts: Any, texts: list[str], refusals: list[str]) -> bool:
    if not isinstance(parts, list):
        return False
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "output_text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "refusal" and isinstance(part.get("refusal"), str):
            refusals.append(part["refusal"])
        else:
            return False
    return True
