"""Learned N:M patterns on CIFAR-10: a trained Conv4 is frozen, and a pattern chosen for each group.

    python -m experiments.run experiments/configs/cifar10_conv4_learned_patterns.py --data_dir=...

The masks of the largest magnitudes to compare with: cifar10_conv4_magnitude_patterns.py.
"""

from experiments.extraction import LearnPattern
from experiments.phases import Dense
from experiments.run import Experiment

experiment = Experiment(
    model="conv4",
    dataset="cifar10",
    limit=20_000,
    evaluations=2,
    phases=(
        Dense(epochs=8, batch=128, optimizer="adam", learning_rate=1e-3, weight_decay=0.0),
        LearnPattern(epochs=4, where="(convs/[123]|fc[12])/kernel"),
    ),
)
grid = [
    {"learn.n": n, "learn.transposable": transposable}
    for n in (2, 1)
    for transposable in (False, True)
]
