"""Gumbel-softmax extraction from random weights on CIFAR-10: bias-free Conv4, Conv6.

    python -m experiments.run experiments/configs/cifar10/gumbel.py --data_dir=... --model=conv6

The paper's batch, rates and split. For fewer epochs than its 1,000 the rate must be higher:

    ... --epochs=12 --set=extract.batch=64 --set=extract.learning_rate=1000
"""

from experiments.experiment import Experiment
from experiments.phases import Extract

experiment = Experiment(
    model="conv4",
    dataset="cifar10",
    sparsity=0.5,
    holdout=5_000,
    phases=(Extract(epochs=1_000),),
)
grid = [{"model": "conv4"}, {"model": "conv6"}]
