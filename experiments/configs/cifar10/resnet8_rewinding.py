"""Pruned by magnitude in two rounds, back to the first epoch's weights (Frankle et al., 2020).

python -m experiments.run experiments/configs/cifar10/resnet8_rewinding.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet8_dense import experiment as dense
from experiments.configs.cifar10.resnet8_dense import how
from experiments.phases import Dense, FineTune, PruneMagnitudes, Rewind

experiment = replace(
    dense,
    phases=(
        Dense(epochs=1, **{**how, "decay": "constant"}),
        Dense(epochs=2, **how),
        PruneMagnitudes(part=0.5),
        Rewind(),
        FineTune(epochs=2, **how),
        PruneMagnitudes(),
        Rewind(),
        FineTune(epochs=3, **how),
    ),
)
