"""The parts that an experiment is made of: a file a method, a line here for its phases."""

from experiments.phases.adaprune import Recalibrate, Reconstruct
from experiments.phases.base import Network, OneShot
from experiments.phases.dense import Dense, FineTune
from experiments.phases.gumbel import Extract
from experiments.phases.hoyer import Regularize, Threshold
from experiments.phases.learned_patterns import LearnPattern
from experiments.phases.magnitude import PruneMagnitudes
from experiments.phases.nm import PrunePattern, TrainPattern
from experiments.phases.probmask import Search

__all__ = [
    "Dense",
    "Extract",
    "FineTune",
    "LearnPattern",
    "Network",
    "OneShot",
    "PruneMagnitudes",
    "PrunePattern",
    "Recalibrate",
    "Reconstruct",
    "Regularize",
    "Search",
    "Threshold",
    "TrainPattern",
]
