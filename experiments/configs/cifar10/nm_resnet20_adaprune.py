"""AdaPrune on CIFAR-10: a ResNet-20, its first and last layer dense, then BatchNorm anew.

    python -m experiments.run experiments/configs/cifar10/nm_resnet20_adaprune.py --data_dir=...

A short training, for two CPU cores; on an accelerator `--epochs=164 --limit=50000`.
"""

from experiments.experiment import Experiment
from experiments.phases import Dense, Recalibrate, Reconstruct

experiment = Experiment(
    model="resnet20",
    dataset="cifar10",
    limit=15_000,
    phases=(
        Dense(epochs=8, batch=128, weight_decay=1e-4),
        Reconstruct(where="blocks.*kernel"),
        Recalibrate(),
    ),
)
grid = [
    {"reconstruct.n": n, "reconstruct.m": m, "reconstruct.transposable": True, **how}
    for n, m in ((2, 4), (4, 8), (2, 8))
    for how in (
        {"reconstruct.method": "gradient"},
        {"reconstruct.sequential": False},
        {"reconstruct.sequential": True},
    )
]
