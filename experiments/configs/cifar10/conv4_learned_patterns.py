"""Learned N:M patterns on CIFAR-10: as mnist/lenet5_learned_patterns.py, for a Conv4.

    python -m experiments.run experiments/configs/cifar10/conv4_learned_patterns.py --data_dir=...

The masks of the largest magnitudes to compare with: conv4_magnitude_patterns.py.
"""

from dataclasses import replace

from experiments.configs.mnist import lenet5_learned_patterns as lenet5

dense, learn = lenet5.experiment.phases
experiment = replace(
    lenet5.experiment,
    model="conv4",
    dataset="cifar10",
    evaluations=2,
    phases=(
        replace(dense, epochs=8),
        replace(learn, epochs=4, where="(convs/[123]|fc[12])/kernel"),
    ),
)
grid = lenet5.grid
