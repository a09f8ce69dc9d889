"""The text of a request that its answer depends on by meaning, and where the reply's stands."""

from ..schemas.record import JsonObject


def last_user_text(body: JsonObject) -> str | None:
    """The text of the last message, where it is a user's and nothing but text; else None.

    None means: not to be compared by meaning (images, tool results, an assistant's turn, or no text at all).
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return None
    last = messages[-1]
    if not isinstance(last, dict) or last.get("role") != "user":
        return None
    content = last.get("content")
    if isinstance(content, str):
        return content.strip() or None
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            return None
        texts.append(part["text"])
    return "\n".join(texts).strip() or None


def reply_message(body: JsonObject) -> JsonObject:
    """The first message of a chat completion; empty where there is none."""
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    return message if isinstance(message, dict) else {}
