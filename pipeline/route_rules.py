"""What the operator says about models and tenants: it comes before any price."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .models import Model


@dataclass(frozen=True, slots=True)
class Rules:
    """Canonical names throughout; a tenant that is not named may use everything."""

    equivalents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """A model that is asked for by name -> others that may answer in its place."""
    models: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By tenant, the only models that it may use."""
    regions: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By tenant, where its data may go; a model that says no region is nowhere."""

    def forbids(self, model: Model, tenant: str) -> str | None:
        """Why a tenant may not use a model, or None."""
        models, regions = self.models.get(tenant), self.regions.get(tenant)
        if models is not None and model.name not in models:
            return "is not among this tenant's models"
        if regions is not None and model.region not in regions:
            return f"answers in {model.region or 'no named region'}, and this tenant's data stays in {', '.join(sorted(regions))}"
        return None
