"""Cuts the prices of a few models out of litellm's price table, as comparison for our own.

    pip download litellm==1.110.2 --no-deps --only-binary :all: -d FOLDER
    python tests/data/litellm_extract.py FOLDER/litellm-1.110.2-*.whl > tests/data/litellm_prices.json

Reads the wheel as an archive; nothing of it is installed or run. licence: tests/data/LICENSE-litellm.txt.
"""

import json
import re
import sys
import zipfile

MODELS = (
    "gpt-6-luna", "gpt-6.1-terra", "gpt-6.1-sol", "gpt-6-astra", "gpt-5", "gpt-5-mini", "gpt-5-nano", "gpt-4.1", "gpt-4.1-mini", "gpt-4o",
    "gpt-4o-mini", "gpt-4", "gpt-4-turbo", "gpt-3.5-turbo", "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5", "claude-haiku-4-5",
    "claude-sonnet-4-5", "claude-opus-4-5",
)  # fmt: skip
FIELD = re.compile(
    r"(input_cost_per_token|output_cost_per_token|cache_read_input_token_cost|cache_creation_input_token_cost)"
    r"(_above_12hr|_above_1hr)?(_above_\d+k_tokens)?(_batches|_flex|_priority)?"
)


def main() -> None:
    wheel = sys.argv[1]
    with zipfile.ZipFile(wheel) as archive:
        table = json.loads(archive.read("litellm/model_prices_and_context_window_backup.json"))
    kept = ("prompt_cache_min_tokens",)
    found = {
        name: {
            # As text with the digits that the file has: 1e-07 stays what it is, and no float comes between.
            **{field: repr(value) for field, value in sorted(table[name].items()) if FIELD.fullmatch(field)},
            **{field: table[name][field] for field in kept if field in table[name]},
        }
        for name in MODELS
        if name in table
    }
    print(json.dumps({"source": wheel.rpartition("/")[2], "usd_per_token": found}, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
