"""Pruned by movement while it trains, weights living on behind the mask (Sanh et al., 2020).

python -m experiments.run experiments/configs/cifar10/resnet8_movement.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet8_dense import experiment as dense
from experiments.configs.cifar10.resnet8_dense import how
from experiments.phases import PruneGradually

experiment = replace(
    dense, phases=(PruneGradually(epochs=8, score="movement", straight_through=True, **how),)
)
