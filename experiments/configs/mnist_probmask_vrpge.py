"""mnist_probmask.py with gradients of the probabilities from losses alone (VR-PGE).

python -m experiments.run experiments/configs/mnist_probmask_vrpge.py --data_dir=... --density=0.1
"""

from experiments.phases import FineTune, Search
from experiments.run import Experiment

experiment = Experiment(
    model="lenet300100",
    dataset="mnist",
    limit=20_000,
    density=0.1,
    phases=(Search(epochs=20, estimator="vrpge", clip_jointly=False), FineTune(epochs=20)),
)
