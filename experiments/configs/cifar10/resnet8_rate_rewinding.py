"""Pruned by magnitude in two rounds, after each the learning rate starts anew (Renda et al., 2020).

python -m experiments.run experiments/configs/cifar10/resnet8_rate_rewinding.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet8_dense import experiment as dense
from experiments.configs.cifar10.resnet8_dense import how
from experiments.phases import Dense, FineTune, PruneMagnitudes

experiment = replace(
    dense,
    phases=(
        Dense(epochs=3, **how),
        PruneMagnitudes(part=0.5),
        FineTune(epochs=2, **how),
        PruneMagnitudes(),
        FineTune(epochs=3, **how),
    ),
)
