"""ProbMask on MNIST: bias-free LeNet-300-100 on the first 20,000 training records.

python -m experiments.run experiments/configs/mnist/probmask.py --data_dir=... --sparsity=0.99

About a minute on two cores. 95.1% at sparsity 0.99, 97.4% at 0.9 (mean of three seeds).
"""

from experiments.experiment import Experiment
from experiments.phases import FineTune, Search

experiment = Experiment(
    model="lenet300100",
    dataset="mnist",
    limit=20_000,
    sparsity=0.99,
    phases=(Search(epochs=20), FineTune(epochs=20)),
)
