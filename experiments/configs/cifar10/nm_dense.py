"""Dense training on CIFAR-10, the yardstick for nm_dynamic.py and nm_static.py.

python -m experiments.run experiments/configs/cifar10/nm_dense.py --data_dir=...
"""

from experiments.experiment import Experiment
from experiments.phases import Dense

experiment = Experiment(
    model="lenet5",
    dataset="cifar10",
    limit=15_000,
    phases=(Dense(epochs=10, batch=128, learning_rate=0.01),),
)
