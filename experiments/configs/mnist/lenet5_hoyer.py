"""DeepHoyer on MNIST, element-wise: LeNet-5 (430,500 weights).

python -m experiments.run experiments/configs/mnist/lenet5_hoyer.py --data_dir=...

Twelve minutes on one core. 99.11% with 3,308 weights (mean of three seeds).
"""

from experiments.experiment import Experiment
from experiments.phases import Dense, FineTune, Regularize, Threshold

adam = {"batch": 100, "optimizer": "adam", "weight_decay": 0.0, "decay": "cosine"}
experiment = Experiment(
    model="lenet5",
    dataset="mnist",
    holdout=5_000,
    dataset_options={"standardize": False},
    phases=(
        Dense(epochs=12, learning_rate=1e-3, **adam),
        Regularize(epochs=25, learning_rate=1e-3, penalty="hoyer_square", strength=2e-4, **adam),
        Threshold(0.1, chain=True),
        FineTune(epochs=8, learning_rate=3e-3, **adam),
    ),
)
grid = [{"threshold.value": value} for value in (0.05, 0.1)]
