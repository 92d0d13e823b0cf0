"""Edge-popup on MNIST: the largest scores of random weights, over the network or in each layer.

python -m experiments.run experiments/configs/mnist_edge_popup.py --data_dir=... --density=0.1
"""

from dataclasses import replace

from experiments.configs.mnist_gumbel import experiment as gumbel
from experiments.extraction import Extract

phase = Extract(epochs=30, learning_rate=0.1, estimator="edge_popup", rescale="none")
experiment = replace(gumbel, phases=(phase,))
grid = [
    {"density": density, "extract.per_layer": per_layer}
    for density in (0.5, 0.1)
    for per_layer in (True, False)
]
