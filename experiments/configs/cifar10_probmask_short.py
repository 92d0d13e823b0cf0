"""What an hour on two CPU cores allows of cifar10_probmask.py: 2,000 records, small batches.

python -m experiments.run experiments/configs/cifar10_probmask_short.py --data_dir=...
"""

from experiments.phases import FineTune, Search
from experiments.run import Experiment

experiment = Experiment(
    model="resnet32",
    dataset="cifar10",
    limit=2_000,
    density=0.01,
    evaluations=2,
    phases=(Search(epochs=10, batch=50), FineTune(epochs=2, batch=50)),
)
