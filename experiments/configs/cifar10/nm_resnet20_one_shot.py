"""N:M masks of a trained ResNet-20 on CIFAR-10, then BatchNorm anew: where AdaPrune starts from.

python -m experiments.run experiments/configs/cifar10/nm_resnet20_one_shot.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.nm_resnet20_adaprune import experiment as adaprune
from experiments.phases import PrunePattern

dense, _, recalibrate = adaprune.phases
experiment = replace(adaprune, phases=(dense, PrunePattern(where="blocks.*kernel"), recalibrate))
grid = [
    {"prune.n": n, "prune.m": m, "prune.transposable": True} for n, m in ((2, 4), (4, 8), (2, 8))
]
