"""The control for pruned channels: how many of ResNet-20 Adam with L2 removes by itself.

    python -m experiments.run experiments/configs/cifar10/resnet20_channels_adam_l2.py \\
        --data_dir=...

The weight decay is a term of the gradient, as it is for the others, and Adam scales it up wherever
the loss has little to say (Mehta et al., CVPR 2019). Nothing is pruned but what has died.
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet20_channels_magnitude import dense, fine_tune
from experiments.configs.cifar10.resnet20_channels_magnitude import experiment as magnitude
from experiments.phases import RemoveDying, Shrink

adam = replace(dense, optimizer="adam", learning_rate=1e-3, name="adam")
more = replace(adam, name="more")
experiment = replace(magnitude, phases=(adam, more, RemoveDying(), Shrink(), fine_tune))
