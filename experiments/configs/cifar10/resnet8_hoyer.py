"""Trained under Hoyer-Square (Yang et al., 2020), then pruned by magnitude and fine-tuned.

python -m experiments.run experiments/configs/cifar10/resnet8_hoyer.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet8_dense import experiment as dense
from experiments.configs.cifar10.resnet8_dense import how
from experiments.phases import FineTune, PruneMagnitudes, Regularize

experiment = replace(
    dense,
    phases=(
        Regularize(epochs=5, strength=1e-5, **how),
        PruneMagnitudes(),
        FineTune(epochs=3, **how),
    ),
)
