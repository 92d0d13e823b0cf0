"""ProbMask beside mnist_hoyer.py: the same network, records, pixels and fine-tuning.

python -m experiments.run experiments/configs/mnist_probmask_55k.py --data_dir=... --density=0.02
"""

from dataclasses import replace

from experiments.configs.mnist_hoyer import experiment as hoyer_square
from experiments.phases import Search

*_, fine_tune = hoyer_square.phases
experiment = replace(hoyer_square, density=0.02, phases=(Search(epochs=15), fine_tune))
grid = [{"density": density} for density in (0.015, 0.02)]
