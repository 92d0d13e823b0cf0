"""N:M masks of a trained network on MNIST, then fine-tuning: as long as nm_dynamic.py.

python -m experiments.run experiments/configs/mnist/nm_static.py --data_dir=...
"""

from experiments.experiment import Experiment
from experiments.phases import Dense, FineTune, PrunePattern

experiment = Experiment(
    model="lenet300100",
    dataset="mnist",
    steps_per_call=50,
    phases=(
        Dense(epochs=20),
        PrunePattern(where="fc[12]"),
        FineTune(epochs=20, batch=256, learning_rate=0.02, decay="cosine", weight_decay=5e-4),
    ),
)
grid = [
    {"prune.n": n, "prune.m": m, "prune.transposable": transposable}
    for n, m in ((2, 4), (4, 8))
    for transposable in (False, True)
]
