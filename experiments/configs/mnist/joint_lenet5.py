"""Joint pruning and quantization on MNIST: LeNet-5 (430,500 weights, 1,722,000 bytes) in few bytes.

    python -m experiments.run experiments/configs/mnist/joint_lenet5.py --data_dir=...

python -m experiments.sweep experiments/configs/mnist/*_lenet5.py --data_dir=...

compares it with pruning alone, quantization alone, and both one after the other.
"""

from experiments.experiment import Experiment
from experiments.phases import Compress, Dense, TrainQuantized

adam = {"batch": 100, "optimizer": "adam", "weight_decay": 0.0, "decay": "cosine"}
experiment = Experiment(
    model="lenet5",
    dataset="mnist",
    holdout=5_000,
    dataset_options={"standardize": False},
    export=True,
    phases=(
        Dense(epochs=12, learning_rate=1e-3, **adam),
        Compress(epochs=25, learning_rate=1e-3, **adam),
        TrainQuantized(epochs=8, learning_rate=1e-3, **adam),
    ),
)
grid = [
    {"compress.budget": budget, "compress.place_bits": place}
    for place, budgets in ((0, (500, 1_000, 2_000, 4_000)), (8, (2_000, 4_000, 8_000)))
    for budget in budgets
]
