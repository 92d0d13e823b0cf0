"""N:M masks of a trained LeNet-5 on CIFAR-10, then fine-tuning: as long as nm_dynamic.py.

python -m experiments.run experiments/configs/cifar10/nm_static.py --data_dir=...
"""

from experiments.experiment import Experiment
from experiments.phases import Dense, FineTune, PrunePattern

experiment = Experiment(
    model="lenet5",
    dataset="cifar10",
    limit=15_000,
    phases=(
        Dense(epochs=5, batch=128, learning_rate=0.01),
        PrunePattern(where="(conv2|fc1)/kernel"),
        FineTune(epochs=5, batch=128, learning_rate=0.003, decay="cosine", weight_decay=5e-4),
    ),
)
grid = [
    {"prune.n": n, "prune.m": m, "prune.transposable": transposable}
    for n, m in ((2, 4), (4, 8))
    for transposable in (False, True)
]
