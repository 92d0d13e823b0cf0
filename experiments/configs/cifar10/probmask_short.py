"""What an hour on two CPU cores allows of probmask.py: 2,000 records, small batches.

python -m experiments.run experiments/configs/cifar10/probmask_short.py --data_dir=...
"""

from experiments.experiment import Experiment
from experiments.phases import FineTune, Search

experiment = Experiment(
    model="resnet32",
    dataset="cifar10",
    limit=2_000,
    sparsity=0.99,
    evaluations=2,
    phases=(Search(epochs=10, batch=50), FineTune(epochs=2, batch=50)),
)
