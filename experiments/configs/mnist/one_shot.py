"""One-shot global magnitude pruning with the training and fine-tuning of hoyer.py.

python -m experiments.run experiments/configs/mnist/one_shot.py --data_dir=... --sparsity=0.98

Two minutes on one core. 93.03% with 5,324 weights (mean of three seeds).
"""

from dataclasses import replace

from experiments.configs.mnist.hoyer import experiment as hoyer_square
from experiments.phases import PruneMagnitudes

dense, _, _, fine_tune = hoyer_square.phases
experiment = replace(hoyer_square, sparsity=0.98, phases=(dense, PruneMagnitudes(), fine_tune))
grid = [{"sparsity": sparsity} for sparsity in (0.985, 0.98, 0.96)]
