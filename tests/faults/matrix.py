"""All faults, in the order in which they are run."""

from .brokers import BROKERS
from .disks import DISKS
from .kills import KILLS
from .play import Fault
from .poison import POISON
from .providers import PROVIDERS
from .stores import STORES

MATRIX: tuple[Fault, ...] = (*KILLS, *BROKERS, *PROVIDERS, *POISON, *STORES, *DISKS)
