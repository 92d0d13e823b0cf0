"""Coupled groups of the largest norms for what they cost, in ResNet-20 on CIFAR-10.

    python -m experiments.run experiments/configs/cifar10/resnet20_channels_magnitude.py

    python -m experiments.sweep experiments/configs/cifar10/resnet20_channels*.py --data_dir=... \\
        --seeds=0 --epochs=30,10,20 --out=runs/channels

compares in one table what prunes channels: coupled DeepHoyer (`resnet20_channels`), gates,
sensitivities, and this one, for half of the flops each but for gates, which find their own part;
and with them the control, Adam with L2, which prunes nothing. All train three times, as long.
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet20_channels import experiment as hoyer
from experiments.phases import PruneChannels, Shrink

dense, _, _, _, fine_tune = hoyer.phases
more = replace(dense, name="more")
experiment = replace(hoyer, phases=(dense, more, PruneChannels(), Shrink(), fine_tune))
