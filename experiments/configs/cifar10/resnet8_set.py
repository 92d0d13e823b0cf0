"""A random mask whose small weights make room at random (SET, Mocanu et al., 2018).

python -m experiments.run experiments/configs/cifar10/resnet8_set.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet8_dense import experiment as dense
from experiments.configs.cifar10.resnet8_dense import how
from experiments.phases import PruneAtStart, Regrow

experiment = replace(
    dense, phases=(PruneAtStart(by="random"), Regrow(epochs=8, by="random", **how))
)
