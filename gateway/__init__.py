"""The OpenAI-compatible HTTP front of the same topics."""
