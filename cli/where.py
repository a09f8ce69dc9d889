"""Where this machine keeps the costs, by its settings."""

from ..connectors.costs_access import CostsLocation
from ..connectors.data_folder import DataFolder
from .children import SINK
from .command_settings import load_settings


def costs_location() -> CostsLocation:
    """A server where CLICKHOUSE_URL names one, else the sink's places in the data folder. Raises `ConfigError`."""
    settings = load_settings()
    folder = DataFolder(settings.data_dir)
    return CostsLocation(clickhouse_url=settings.clickhouse_url, sink_state=folder.state_file(SINK), folder=folder.costs)
