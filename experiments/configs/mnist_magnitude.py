"""One-shot global magnitude pruning on MNIST, then the fine-tuning of mnist_probmask.py.

python -m experiments.run experiments/configs/mnist_magnitude.py --data_dir=... --density=0.01

Half a minute on two cores. 85.2% at density 0.01, 96.5% at 0.1 (mean of three seeds).
"""

from experiments.phases import Dense, FineTune, PruneMagnitudes
from experiments.run import Experiment

experiment = Experiment(
    model="lenet300100",
    dataset="mnist",
    limit=20_000,
    density=0.01,
    phases=(Dense(epochs=20), PruneMagnitudes(), FineTune(epochs=20)),
)
