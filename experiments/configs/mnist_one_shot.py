"""One-shot global magnitude pruning with the training and fine-tuning of mnist_hoyer.py.

python -m experiments.run experiments/configs/mnist_one_shot.py --data_dir=... --density=0.02

Two minutes on one core. 93.03% with 5,324 weights (mean of three seeds).
"""

from dataclasses import replace

from experiments.configs.mnist_hoyer import experiment as hoyer_square
from experiments.phases import PruneMagnitudes

dense, _, _, fine_tune = hoyer_square.phases
experiment = replace(hoyer_square, density=0.02, phases=(dense, PruneMagnitudes(), fine_tune))
grid = [{"density": density} for density in (0.015, 0.02, 0.04)]
