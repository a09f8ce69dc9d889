"""All faults, in the order in which they are run."""

from .kills import KILLS
from .play import Fault

MATRIX: tuple[Fault, ...] = (*KILLS,)
