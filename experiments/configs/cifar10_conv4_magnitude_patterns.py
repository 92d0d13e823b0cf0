"""N:M masks of a trained Conv4 by magnitude, to compare cifar10_conv4_learned_patterns.py with.

python -m experiments.run experiments/configs/cifar10_conv4_magnitude_patterns.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10_conv4_learned_patterns import experiment as learned
from experiments.nm_phases import PrunePattern

prune = PrunePattern(where=learned.phases[1].where)
experiment = replace(learned, phases=(learned.phases[0], prune))
grid = [
    {"prune.n": n, "prune.transposable": transposable}
    for n in (2, 1)
    for transposable in (False, True)
]
