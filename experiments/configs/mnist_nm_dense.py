"""Dense training on MNIST, the yardstick for mnist_nm_dynamic.py and mnist_nm_static.py.

python -m experiments.run experiments/configs/mnist_nm_dense.py --data_dir=...
"""

from experiments.phases import Dense
from experiments.run import Experiment

experiment = Experiment(
    model="lenet300100", dataset="mnist", steps_per_call=50, phases=(Dense(epochs=40),)
)
