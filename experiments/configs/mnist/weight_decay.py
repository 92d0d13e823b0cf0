"""Nothing but weight decay in the place of Hoyer-Square: else as hoyer.py.

python -m experiments.run experiments/configs/mnist/weight_decay.py --data_dir=...

The control. Three and a half minutes on one core. 98.48% with 36,513 weights (mean of three seeds).
"""

from dataclasses import replace

from experiments.configs.mnist.hoyer import experiment as hoyer_square

dense, regularize, threshold, fine_tune = hoyer_square.phases
experiment = replace(
    hoyer_square,
    phases=(
        dense,
        replace(regularize, strength=0.0, weight_decay=1e-4),
        replace(threshold, value=1.0),
        fine_tune,
    ),
)
grid = [{"threshold.value": value} for value in (1.0, 2.0)]
