"""A supermask on MNIST: the weights of probmask.py stay as initialised, masks alone learn.

python -m experiments.run experiments/configs/mnist/supermask.py --data_dir=... --sparsity=0.9
"""

from experiments.experiment import Experiment
from experiments.phases import Search

experiment = Experiment(
    model="lenet300100",
    dataset="mnist",
    limit=20_000,
    sparsity=0.9,
    phases=(
        Search(epochs=20, train_weights=False, start=0.5, dense_until=0.0, reach_sparsity_at=0.6),
    ),
)
