"""N:M masks of a trained LeNet-5 by magnitude, to compare lenet5_learned_patterns.py with.

python -m experiments.run experiments/configs/mnist/lenet5_magnitude_patterns.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.mnist.lenet5_learned_patterns import experiment as learned
from experiments.phases import PrunePattern

experiment = replace(learned, phases=(learned.phases[0], PrunePattern(where="fc1/kernel")))
grid = [
    {"prune.n": n, "prune.transposable": transposable}
    for n in (2, 1)
    for transposable in (False, True)
]
