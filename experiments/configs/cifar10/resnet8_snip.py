"""Pruned before training by SNIP (Lee et al., 2019).

python -m experiments.run experiments/configs/cifar10/resnet8_snip.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet8_dense import experiment as dense
from experiments.configs.cifar10.resnet8_dense import how
from experiments.phases import FineTune, PruneAtStart

experiment = replace(dense, phases=(PruneAtStart(by="snip"), FineTune(epochs=8, **how)))
