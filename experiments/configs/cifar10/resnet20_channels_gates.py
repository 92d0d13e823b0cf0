"""Channel gates in ResNet-20 on CIFAR-10: weights, then gates, then the weights that are left.

    python -m experiments.run experiments/configs/cifar10/resnet20_channels_gates.py --data_dir=...

How many gates shut is an outcome: `--set=gates.strength=...` says how much a channel must be worth.
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet20_channels_magnitude import dense, fine_tune
from experiments.configs.cifar10.resnet20_channels_magnitude import experiment as magnitude
from experiments.phases import Shrink, TrainGates

gates = TrainGates(epochs=dense.epochs, batch=dense.batch)
experiment = replace(magnitude, phases=(dense, gates, Shrink(), fine_tune))
