"""Pruned by magnitude while it trains (Zhu and Gupta, 2017).

python -m experiments.run experiments/configs/cifar10/resnet8_gradual.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet8_dense import experiment as dense
from experiments.configs.cifar10.resnet8_dense import how
from experiments.phases import PruneGradually

experiment = replace(dense, phases=(PruneGradually(epochs=8, **how),))
