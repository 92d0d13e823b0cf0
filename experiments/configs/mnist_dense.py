"""Dense training on MNIST, the yardstick for mnist_probmask.py: the same network, epochs and steps.

python -m experiments.run experiments/configs/mnist_dense.py --data_dir=...

Half a minute on two cores. 97.3% (mean of three seeds).
"""

from experiments.phases import Dense, FineTune
from experiments.run import Experiment

experiment = Experiment(
    model="lenet300100",
    dataset="mnist",
    limit=20_000,
    density=1.0,
    phases=(Dense(epochs=20), FineTune(epochs=20)),
)
