"""Trained, pruned by magnitude at one stroke, and fine-tuned: half of the epochs each.

python -m experiments.run experiments/configs/cifar10/resnet8_one_shot.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet8_dense import experiment as dense
from experiments.configs.cifar10.resnet8_dense import how
from experiments.phases import Dense, FineTune, PruneMagnitudes

experiment = replace(
    dense, phases=(Dense(epochs=4, **how), PruneMagnitudes(), FineTune(epochs=4, **how))
)
