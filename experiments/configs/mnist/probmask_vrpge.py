"""probmask.py with gradients of the probabilities from losses alone (VR-PGE).

python -m experiments.run experiments/configs/mnist/probmask_vrpge.py --data_dir=... --sparsity=0.9
"""

from experiments.experiment import Experiment
from experiments.phases import FineTune, Search

experiment = Experiment(
    model="lenet300100",
    dataset="mnist",
    limit=20_000,
    sparsity=0.9,
    phases=(Search(epochs=20, estimator="vrpge", clip_jointly=False), FineTune(epochs=20)),
)
