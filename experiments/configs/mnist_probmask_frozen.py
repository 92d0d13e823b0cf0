"""ProbMask's supermask on MNIST, with the steps of mnist_gumbel.py: probabilities under a budget.

python -m experiments.run experiments/configs/mnist_probmask_frozen.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.mnist_gumbel import experiment as gumbel
from experiments.phases import Search

phase = Search(epochs=30, draws=1, train_weights=False, start=0.5, densify_until=0.0)
experiment = replace(gumbel, phases=(phase,))
grid = [{"density": density} for density in (0.5, 0.1)]
