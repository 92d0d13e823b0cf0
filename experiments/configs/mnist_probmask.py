"""ProbMask on MNIST: bias-free LeNet-300-100 on the first 20,000 training records.

python -m experiments.run experiments/configs/mnist_probmask.py --data_dir=... --density=0.01

About a minute on two cores. 95.2% at density 0.01, 97.4% at 0.1 (mean of three seeds).
"""

from experiments.phases import FineTune, Search
from experiments.run import Experiment

experiment = Experiment(
    model="lenet300100",
    dataset="mnist",
    limit=20_000,
    density=0.01,
    phases=(Search(epochs=20), FineTune(epochs=20)),
)
