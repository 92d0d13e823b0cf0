"""The parts that an experiment is made of: a file a method, a line here a phase."""

from experiments.phases.adaprune import PruneLayers as PruneLayers
from experiments.phases.adaprune import Recalibrate as Recalibrate
from experiments.phases.adaprune import Reconstruct as Reconstruct
from experiments.phases.base import Network as Network
from experiments.phases.base import OneShot as OneShot
from experiments.phases.dense import Dense as Dense
from experiments.phases.dense import FineTune as FineTune
from experiments.phases.gumbel import Extract as Extract
from experiments.phases.hoyer import Regularize as Regularize
from experiments.phases.hoyer import Threshold as Threshold
from experiments.phases.joint import Compress as Compress
from experiments.phases.joint import TrainQuantized as TrainQuantized
from experiments.phases.learned_patterns import LearnPattern as LearnPattern
from experiments.phases.magnitude import PruneGradually as PruneGradually
from experiments.phases.magnitude import PruneMagnitudes as PruneMagnitudes
from experiments.phases.nm import PrunePattern as PrunePattern
from experiments.phases.nm import TrainPattern as TrainPattern
from experiments.phases.probmask import Search as Search
from experiments.phases.removal import PruneChannels as PruneChannels
from experiments.phases.removal import Shrink as Shrink
from experiments.phases.sparse_training import PruneAtStart as PruneAtStart
from experiments.phases.sparse_training import Regrow as Regrow
