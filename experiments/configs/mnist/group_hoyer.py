"""DeepHoyer on MNIST, structural: rows and columns of LeNet-300-100 leave.

python -m experiments.run experiments/configs/mnist/group_hoyer.py --data_dir=...

Six minutes on one core. 97.97% with 16,323 multiplications (mean of three seeds); 98.01% on all
training records, `--holdout=0`.
"""

from dataclasses import replace

from experiments.configs.mnist.hoyer import experiment as element_wise
from experiments.phases import Threshold

dense, regularize, _, fine_tune = element_wise.phases
group_hoyer_square = replace(
    regularize, epochs=250, penalty="group_hoyer_square", strength=2e-3, weight_decay=1e-4
)
experiment = replace(
    element_wise,
    phases=(dense, group_hoyer_square, Threshold(0.1, groups=True, chain=True), fine_tune),
)
grid = [{"threshold.value": value} for value in (0.06, 0.1, 0.15)]
