"""Dense training on CIFAR-10, the yardstick for cifar10_nm_dynamic.py and cifar10_nm_static.py.

python -m experiments.run experiments/configs/cifar10_nm_dense.py --data_dir=...
"""

from experiments.phases import Dense
from experiments.run import Experiment

experiment = Experiment(
    model="lenet5",
    dataset="cifar10",
    limit=15_000,
    phases=(Dense(epochs=10, batch=128, learning_rate=0.01),),
)
