"""Pruned before training by GraSP (Wang et al., 2020).

python -m experiments.run experiments/configs/cifar10/resnet8_grasp.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet8_dense import experiment as dense
from experiments.configs.cifar10.resnet8_dense import how
from experiments.phases import FineTune, PruneAtStart

experiment = replace(dense, phases=(PruneAtStart(by="grasp"), FineTune(epochs=8, **how)))
