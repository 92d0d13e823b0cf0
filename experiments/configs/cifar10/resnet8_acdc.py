"""Dense and sparse training by turns (AC/DC, Peste et al., 2021).

python -m experiments.run experiments/configs/cifar10/resnet8_acdc.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.cifar10.resnet8_dense import experiment as dense
from experiments.configs.cifar10.resnet8_dense import how
from experiments.phases import PruneAlternately

experiment = replace(dense, phases=(PruneAlternately(epochs=8, **how),))
