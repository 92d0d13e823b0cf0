"""N:M masks that follow the weights on MNIST: LeNet-300-100, the last layer dense, from scratch.

python -m experiments.run experiments/configs/mnist/nm_dynamic.py --data_dir=...
"""

from experiments.experiment import Experiment
from experiments.phases import TrainPattern

experiment = Experiment(
    model="lenet300100",
    dataset="mnist",
    steps_per_call=50,
    phases=(TrainPattern(epochs=40, where="fc[12]"),),
)
_plain = {"train.transposable": False, "train.every": 1}
_transposable = {"train.transposable": True, "train.every": 40}
grid = [
    {"train.n": n, "train.m": m, **pattern, "train.pruned_decay": decay}
    for n, m in ((2, 4), (4, 8))
    for pattern in (_plain, _transposable)
    for decay in (0.0, 2e-4)
]
