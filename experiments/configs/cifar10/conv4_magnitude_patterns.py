"""N:M masks of a trained Conv4 by magnitude, to compare conv4_learned_patterns.py with.

python -m experiments.run experiments/configs/cifar10/conv4_magnitude_patterns.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.conv4_learned_patterns import experiment as learned
from experiments.configs.mnist import lenet5_magnitude_patterns as lenet5
from experiments.phases import PrunePattern

dense, learn = learned.phases
experiment = replace(learned, phases=(dense, PrunePattern(where=learn.where)))
grid = lenet5.grid
