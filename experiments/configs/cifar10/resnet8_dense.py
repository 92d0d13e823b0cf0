"""A ResNet-8 on CIFAR-10, the yardstick for the classics: eight epochs for each method.

    python -m experiments.run experiments/configs/cifar10/resnet8_dense.py --data_dir=...

All of them at four sparsities, in one table and one picture:

    python -m experiments.sweep experiments/configs/cifar10/resnet8_*.py \
        --sparsities=0.8,0.9,0.95,0.98 --seeds=0 --out=runs/classics --data_dir=...

Short, for two CPU cores. On an accelerator a ResNet-56 on all records, 160 epochs for each method:
`--model=resnet56 --limit=50000`, and as many epochs by `--epochs`.
"""

from experiments.experiment import Experiment
from experiments.phases import Dense

# What every phase of these configs trains with.
how = {"batch": 128, "learning_rate": 0.1, "weight_decay": 5e-4, "decay": "cosine"}

experiment = Experiment(
    model="resnet8",
    dataset="cifar10",
    limit=10_000,
    evaluations=4,
    phases=(Dense(epochs=8, **how),),
)
