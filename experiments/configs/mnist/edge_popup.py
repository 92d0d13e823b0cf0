"""Edge-popup on MNIST: the largest scores of random weights, over the network or in each layer.

python -m experiments.run experiments/configs/mnist/edge_popup.py --data_dir=... --sparsity=0.9
"""

from dataclasses import replace

from experiments.configs.mnist.gumbel import experiment as gumbel
from experiments.phases import Extract

phase = Extract(epochs=30, learning_rate=0.1, estimator="edge_popup", rescale="none")
experiment = replace(gumbel, phases=(phase,))
grid = [
    {"sparsity": sparsity, "extract.per_layer": per_layer}
    for sparsity in (0.5, 0.9)
    for per_layer in (True, False)
]
