"""Several keys of one provider."""

from collections.abc import Mapping, Sequence

from ...pipeline.models import Model
from ...pipeline.ports import Begun, Provider, ProviderReply
from ...schemas.record import JsonObject


def keys_of(providers: Mapping[str, Provider]) -> dict[str, int]:
    """How many keys each provider has."""
    return {name: len(found.accounts) if isinstance(found, Accounts) else 1 for name, found in providers.items()}


class Accounts:
    """One provider with several keys: which one a call takes is decided with its permit, by the limits of each."""

    def __init__(self, accounts: Sequence[Provider]) -> None:
        if not accounts:
            raise ValueError("a provider without keys is not set up")
        self.accounts = tuple(accounts)

    async def complete(
        self, model: Model, body: JsonObject, *, timeout: float, metadata: Mapping[str, str], begun: Begun | None = None
    ) -> ProviderReply:
        """With the first key, for callers that have no permit. See `Provider.complete`."""
        return await self.accounts[0].complete(model, body, timeout=timeout, metadata=metadata, begun=begun)

    async def close(self) -> None:
        for account in self.accounts:
            await account.close()
