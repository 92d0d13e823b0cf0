"""Dense training on MNIST, the yardstick for nm_dynamic.py and nm_static.py.

python -m experiments.run experiments/configs/mnist/nm_dense.py --data_dir=...
"""

from experiments.experiment import Experiment
from experiments.phases import Dense

experiment = Experiment(
    model="lenet300100", dataset="mnist", steps_per_call=50, phases=(Dense(epochs=40),)
)
