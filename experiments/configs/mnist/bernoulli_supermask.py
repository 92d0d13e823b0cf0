"""A supermask of random weights on MNIST: Bernoulli draws, straight-through, dynamic rescale.

python -m experiments.run experiments/configs/mnist/bernoulli_supermask.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.mnist.gumbel import experiment as gumbel
from experiments.phases import Extract

phase = Extract(epochs=30, learning_rate=1000.0, estimator="supermask", rescale="dynamic")
experiment = replace(gumbel, phases=(phase,))
