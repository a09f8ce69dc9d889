"""Where this machine keeps the costs, by the settings of the environment."""

import os
from pathlib import Path

from platformdirs import user_data_path

from .costs_access import CostsLocation


def costs_location() -> CostsLocation:
    """Reads the environment once per command."""
    data = os.environ.get("INFERENCE_ENGINE_DATA_DIR")
    folder = Path(data) if data else user_data_path("inference-engine")
    return CostsLocation(clickhouse_url=os.environ.get("CLICKHOUSE_URL") or None, sink_state=folder / "sink.json", folder=folder / "costs")
