"""N:M masks of a trained LeNet-300-100 on MNIST and nothing else: where AdaPrune starts from.

python -m experiments.run experiments/configs/mnist/nm_one_shot.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.mnist.nm_adaprune import experiment as adaprune
from experiments.phases import PrunePattern

experiment = replace(adaprune, phases=(adaprune.phases[0], PrunePattern(where="fc[12]")))
grid = [
    {"prune.n": n, "prune.m": m, "prune.transposable": True}
    for n, m in ((2, 4), (4, 8), (1, 4), (2, 8))
]
