"""Pruned while it trains, with weights that live on behind the mask (Lin et al., 2020).

python -m experiments.run experiments/configs/cifar10/resnet8_feedback.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet8_dense import experiment as dense
from experiments.configs.cifar10.resnet8_dense import how
from experiments.phases import PruneGradually

experiment = replace(dense, phases=(PruneGradually(epochs=8, straight_through=True, **how),))
