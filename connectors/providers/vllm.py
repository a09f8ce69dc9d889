"""vLLM, and other servers of one's own: the OpenAI protocol at a base URL, with or without a key."""

from .openai import OpenAIProvider


class VllmProvider(OpenAIProvider):
    """As `OpenAIProvider`. Cached tokens appear in usage only with the server's --enable-prompt-tokens-details."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        super().__init__(api_key, base_url, name="vllm", key_setting="VLLM_API_KEY", url_setting="VLLM_BASE_URL")
