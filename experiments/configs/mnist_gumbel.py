"""Gumbel-softmax extraction from random weights on MNIST: bias-free LeNet-300-100.

    python -m experiments.run experiments/configs/mnist_gumbel.py --data_dir=...

Its rivals are in mnist_bernoulli_supermask.py, mnist_edge_popup.py, mnist_probmask_frozen.py.
"""

from experiments.extraction import Extract
from experiments.run import Experiment

experiment = Experiment(
    model="lenet300100",
    dataset="mnist",
    density=0.5,
    steps_per_call=50,
    phases=(Extract(epochs=30, learning_rate=1000.0),),
)
grid = [
    {"extract.rescale": "smart"},
    {"extract.rescale": "dynamic"},
    {"extract.rescale": "none"},
    {"density": 0.1, "extract.budget": "projection"},
    {"density": 0.1, "extract.budget": "penalty", "extract.strength": 0.5},
    {"density": 0.1, "extract.budget": "top_k"},
]
