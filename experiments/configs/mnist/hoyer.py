"""DeepHoyer on MNIST, element-wise: LeNet-300-100 (266,200 weights, no biases).

python -m experiments.run experiments/configs/mnist/hoyer.py --data_dir=...

Four minutes on one core. 98.03% with 3,839 weights (mean of three seeds); 98.21% with 4,544 by
`--holdout=0 --set=threshold.value=0.06`, on all training records.
"""

from experiments.experiment import Experiment
from experiments.phases import Dense, FineTune, Regularize, Threshold

adam = {"batch": 100, "optimizer": "adam", "weight_decay": 0.0}
experiment = Experiment(
    model="lenet300100",
    dataset="mnist",
    holdout=5_000,
    dataset_options={"standardize": False},
    steps_per_call=50,
    phases=(
        Dense(epochs=250, learning_rate=1e-3, decay=(0.9,), **adam),
        Regularize(
            epochs=100,
            learning_rate=1e-3,
            decay="cosine",
            penalty="hoyer_square",
            strength=2e-4,
            **adam,
        ),
        Threshold(0.08, chain=True),
        FineTune(epochs=30, learning_rate=3e-3, decay="cosine", **adam),
    ),
)
grid = [
    {"regularize.strength": strength, "threshold.value": value}
    for strength in (1e-4, 2e-4, 4e-4)
    for value in (0.05, 0.08, 0.12)
]
