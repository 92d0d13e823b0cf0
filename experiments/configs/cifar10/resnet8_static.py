"""A random mask of Erdos-Renyi densities, which stays.

python -m experiments.run experiments/configs/cifar10/resnet8_static.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet8_dense import experiment as dense
from experiments.configs.cifar10.resnet8_dense import how
from experiments.phases import FineTune, PruneAtStart

experiment = replace(dense, phases=(PruneAtStart(by="random"), FineTune(epochs=8, **how)))
