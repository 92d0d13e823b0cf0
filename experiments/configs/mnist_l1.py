"""L1 in the place of Hoyer-Square: else as mnist_hoyer.py.

python -m experiments.run experiments/configs/mnist_l1.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.mnist_hoyer import experiment as hoyer_square

dense, regularize, threshold, fine_tune = hoyer_square.phases
experiment = replace(
    hoyer_square,
    phases=(
        dense,
        replace(regularize, penalty="l1", strength=5e-5),
        replace(threshold, value=0.25),
        fine_tune,
    ),
)
grid = [{"threshold.value": value} for value in (0.5, 1.0, 2.0)]
