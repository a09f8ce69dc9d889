"""All faults, in the order in which they are run."""

from .audits import AUDITS
from .batches import BATCHES
from .brokers import BROKERS
from .disks import DISKS
from .grades import GRADES
from .kills import KILLS
from .play import Fault
from .poison import POISON
from .providers import PROVIDERS
from .refusals import REFUSALS
from .stores import STORES

MATRIX: tuple[Fault, ...] = (*KILLS, *AUDITS, *GRADES, *BATCHES, *BROKERS, *PROVIDERS, *REFUSALS, *POISON, *STORES, *DISKS)
