"""Gumbel-softmax extraction from random weights on MNIST: bias-free LeNet-300-100.

    python -m experiments.run experiments/configs/mnist/gumbel.py --data_dir=...

Its rivals are in bernoulli_supermask.py, edge_popup.py, probmask_frozen.py.
"""

from experiments.experiment import Experiment
from experiments.phases import Extract

experiment = Experiment(
    model="lenet300100",
    dataset="mnist",
    sparsity=0.5,
    steps_per_call=50,
    phases=(Extract(epochs=30, learning_rate=1000.0),),
)
grid = [
    {"extract.rescale": "smart"},
    {"extract.rescale": "dynamic"},
    {"extract.rescale": "none"},
    {"sparsity": 0.9, "extract.budget": "projection"},
    {"sparsity": 0.9, "extract.budget": "penalty", "extract.strength": 0.5},
    {"sparsity": 0.9, "extract.budget": "top_k"},
]
