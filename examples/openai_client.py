"""OpenAI's own client in front of the engine: only `base_url` changes.

inference-engine gateway &
python examples/openai_client.py
"""

import os

from openai import OpenAI


def main() -> None:
    client = OpenAI(
        api_key=os.environ.get("INFERENCE_ENGINE_KEY", "none-on-loopback"),
        base_url=os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000/v1"),
    )
    for question in ("What is a standing order?", "What is a standing order?", "Explain compound interest to a child."):
        answer = client.chat.completions.create(
            model="auto",  # or a model's name: then that one is asked
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=80,
            extra_body={"engine": {"user_id": "example", "feature_name": "openai-client"}},
        )
        engine = (answer.model_extra or {})["engine"]
        text, cache = answer.choices[0].message.content, engine["cache"]["tier"]
        print(f"{question} -> {text!s:.50} | {answer.model} ${engine['cost_usd']} cache={cache}")

    with client.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": "Count to five."}], max_tokens=40, stream=True
    ) as stream:
        print("streamed:", "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))


if __name__ == "__main__":
    main()
