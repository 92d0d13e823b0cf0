"""Provable filter pruning of ResNet-20 on CIFAR-10, for half of the flops.

    python -m experiments.run experiments/configs/cifar10/resnet20_channels_sensitivity.py \\
        --data_dir=...

The most sensitive channels stay; with `--set=sensitivity.draw=True` they are drawn and reweighted.
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet20_channels_magnitude import dense, fine_tune, more
from experiments.configs.cifar10.resnet20_channels_magnitude import experiment as magnitude
from experiments.phases import PruneBySensitivity, Shrink

phases = (dense, more, PruneBySensitivity(), Shrink(), fine_tune)
experiment = replace(magnitude, phases=phases)
