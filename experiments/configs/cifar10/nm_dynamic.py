"""N:M masks that follow the weights on CIFAR-10: LeNet-5, first and last layer dense, from scratch.

python -m experiments.run experiments/configs/cifar10/nm_dynamic.py --data_dir=...
"""

from experiments.experiment import Experiment
from experiments.phases import TrainPattern

experiment = Experiment(
    model="lenet5",
    dataset="cifar10",
    limit=15_000,
    phases=(TrainPattern(epochs=10, batch=128, learning_rate=0.01, where="(conv2|fc1)/kernel"),),
)
_plain = {"train.transposable": False, "train.every": 1}
_transposable = {"train.transposable": True, "train.every": 40}
grid = [
    {"train.n": n, "train.m": m, **pattern, "train.pruned_decay": decay}
    for n, m, decay in ((2, 4, 0.0), (2, 4, 2e-4), (4, 8, 0.0))
    for pattern in (_plain, _transposable)
]
