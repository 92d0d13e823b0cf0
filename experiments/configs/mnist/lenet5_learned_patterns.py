"""Learned N:M patterns on MNIST: a trained LeNet-5 is frozen, and a pattern chosen for each group.

    python -m experiments.run experiments/configs/mnist/lenet5_learned_patterns.py --data_dir=...

The masks of the largest magnitudes to compare with: lenet5_magnitude_patterns.py.
"""

from experiments.experiment import Experiment
from experiments.phases import Dense, LearnPattern

experiment = Experiment(
    model="lenet5",
    dataset="mnist",
    limit=20_000,
    phases=(
        Dense(epochs=6, batch=128, optimizer="adam", learning_rate=1e-3, weight_decay=0.0),
        LearnPattern(epochs=6, where="fc1/kernel"),
    ),
)
grid = [
    {"learn.n": n, "learn.transposable": transposable}
    for n in (2, 1)
    for transposable in (False, True)
]
