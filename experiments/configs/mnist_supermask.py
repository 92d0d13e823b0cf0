"""A supermask on MNIST: the weights of mnist_probmask.py stay as initialised, masks alone learn.

python -m experiments.run experiments/configs/mnist_supermask.py --data_dir=... --density=0.1
"""

from experiments.phases import Search
from experiments.run import Experiment

experiment = Experiment(
    model="lenet300100",
    dataset="mnist",
    limit=20_000,
    density=0.1,
    phases=(
        Search(epochs=20, train_weights=False, start=0.5, densify_until=0.0, reach_density_at=0.6),
    ),
)
