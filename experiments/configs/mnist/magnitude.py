"""One-shot global magnitude pruning on MNIST, then the fine-tuning of probmask.py.

python -m experiments.run experiments/configs/mnist/magnitude.py --data_dir=... --sparsity=0.99

Half a minute on two cores. 85.2% at sparsity 0.99, 96.5% at 0.9 (mean of three seeds).
"""

from experiments.experiment import Experiment
from experiments.phases import Dense, FineTune, PruneMagnitudes

experiment = Experiment(
    model="lenet300100",
    dataset="mnist",
    limit=20_000,
    sparsity=0.99,
    phases=(Dense(epochs=20), PruneMagnitudes(), FineTune(epochs=20)),
)
