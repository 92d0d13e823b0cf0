"""Dense training on MNIST, the yardstick for probmask.py: the same network, epochs and steps.

python -m experiments.run experiments/configs/mnist/dense.py --data_dir=...

Half a minute on two cores. 97.3% (mean of three seeds).
"""

from experiments.experiment import Experiment
from experiments.phases import Dense, FineTune

experiment = Experiment(
    model="lenet300100",
    dataset="mnist",
    limit=20_000,
    sparsity=0.0,
    phases=(Dense(epochs=20), FineTune(epochs=20)),
)
