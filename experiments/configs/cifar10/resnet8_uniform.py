"""Pruned by magnitude while it trains, each layer as much as the others.

python -m experiments.run experiments/configs/cifar10/resnet8_uniform.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet8_dense import experiment as dense
from experiments.configs.cifar10.resnet8_dense import how
from experiments.phases import PruneGradually

experiment = replace(dense, phases=(PruneGradually(epochs=8, scope="layer", **how),))
