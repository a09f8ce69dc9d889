"""Faust's table manager without its recovery, which `Membership` and `recovery` do."""

from typing import TYPE_CHECKING

from faust.tables.manager import TableManager
from faust.types import TP

if TYPE_CHECKING:
    from .application import SafeApp


class SafeTableManager(TableManager):
    """Registers the changelogs, so that the group assigns them like the topics they belong to."""

    app: "SafeApp"

    async def on_start(self) -> None:
        self._tables_finalized.set()
        for table in self.values():
            if table not in self._channels:
                channel = table.changelog_topic.clone_using_queue(self.changelog_queue)
                self.app.topics.add(channel)
                self._channels[table] = channel
            await table.maybe_start()
        self._tables_registered.set()

    async def on_stop(self) -> None:
        for table in self.values():
            await table.stop()

    def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Nothing is buffered here."""
