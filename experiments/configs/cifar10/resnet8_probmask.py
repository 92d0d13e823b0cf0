"""ProbMask: probabilities with weights, then the kept weights (Zhou et al., 2021).

python -m experiments.run experiments/configs/cifar10/resnet8_probmask.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet8_dense import experiment as dense
from experiments.configs.cifar10.resnet8_dense import how
from experiments.phases import FineTune, Search

experiment = replace(dense, phases=(Search(epochs=5, batch=128), FineTune(epochs=3, **how)))
