"""DeepHoyer on MNIST, structural: filters, channels and hidden units of LeNet-5 leave.

python -m experiments.run experiments/configs/mnist/lenet5_group_hoyer.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.mnist.lenet5_hoyer import experiment as element_wise
from experiments.phases import Threshold

dense, regularize, _, fine_tune = element_wise.phases
group_hoyer_square = replace(
    regularize, penalty="group_hoyer_square", strength=1e-2, weight_decay=1e-4
)
experiment = replace(
    element_wise,
    phases=(dense, group_hoyer_square, Threshold(0.06, groups=True, chain=True), fine_tune),
)
grid = [{"threshold.value": value} for value in (0.05, 0.1)]
