"""The Hoyer ratio in the place of Hoyer-Square: else as hoyer.py.

python -m experiments.run experiments/configs/mnist/hoyer_ratio.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.mnist.hoyer import experiment as hoyer_square

dense, regularize, threshold, fine_tune = hoyer_square.phases
experiment = replace(
    hoyer_square,
    phases=(
        dense,
        replace(regularize, penalty="hoyer_ratio", strength=0.02),
        replace(threshold, value=0.05),
        fine_tune,
    ),
)
grid = [{"threshold.value": value} for value in (0.05, 0.1)]
