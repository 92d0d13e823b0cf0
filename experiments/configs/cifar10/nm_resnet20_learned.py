"""Learned N:M patterns on CIFAR-10, for the frozen ResNet-20 of nm_resnet20_adaprune.py.

python -m experiments.run experiments/configs/cifar10/nm_resnet20_learned.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.nm_resnet20_adaprune import experiment as adaprune
from experiments.phases import LearnPattern

dense, _, recalibrate = adaprune.phases
experiment = replace(
    adaprune, phases=(dense, LearnPattern(epochs=4, where="blocks.*kernel"), recalibrate)
)
grid = [{"learn.transposable": transposable} for transposable in (False, True)]
