"""AdaPrune on MNIST: a trained LeNet-300-100 becomes N:M by 1,000 images without labels.

python -m experiments.run experiments/configs/mnist/nm_adaprune.py --data_dir=...
"""

from experiments.experiment import Experiment
from experiments.phases import Dense, Reconstruct

experiment = Experiment(
    model="lenet300100",
    dataset="mnist",
    steps_per_call=50,
    phases=(Dense(epochs=40), Reconstruct(where="fc[12]")),
)
grid = [
    {"reconstruct.n": n, "reconstruct.m": m, "reconstruct.transposable": True, **how}
    for n, m in ((2, 4), (4, 8), (1, 4), (2, 8))
    for how in (
        {"reconstruct.method": "gradient"},
        {"reconstruct.sequential": False},
        {"reconstruct.sequential": True},
    )
]
