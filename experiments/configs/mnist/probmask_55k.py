"""ProbMask beside hoyer.py: the same network, records, pixels and fine-tuning.

python -m experiments.run experiments/configs/mnist/probmask_55k.py --data_dir=... --sparsity=0.98

A minute on one core, for 15 epochs of search. 97.40% with 5,324 weights (mean of three seeds).
"""

from dataclasses import replace

from experiments.configs.mnist.hoyer import experiment as hoyer_square
from experiments.phases import Search

*_, fine_tune = hoyer_square.phases
experiment = replace(hoyer_square, sparsity=0.98, phases=(Search(epochs=15), fine_tune))
grid = [{"sparsity": sparsity} for sparsity in (0.985, 0.98)]
