"""ProbMask's supermask on MNIST, with the steps of gumbel.py: probabilities under a budget.

python -m experiments.run experiments/configs/mnist/probmask_frozen.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.mnist.gumbel import experiment as gumbel
from experiments.phases import Search

phase = Search(epochs=30, draws=1, train_weights=False, start=0.5, dense_until=0.0)
experiment = replace(gumbel, phases=(phase,))
grid = [{"sparsity": sparsity} for sparsity in (0.5, 0.9)]
