"""ProbMask on CIFAR-10 in the paper's setting: ResNet-32 with doubled widths at 99% sparsity.

    python -m experiments.run experiments/configs/cifar10/probmask.py --data_dir=...

300 epochs of search are days on a CPU; on an accelerator the same command serves.
"""

from experiments.experiment import Experiment
from experiments.phases import FineTune, Search

experiment = Experiment(
    model="resnet32",
    dataset="cifar10",
    sparsity=0.99,
    phases=(Search(epochs=300), FineTune(epochs=20)),
)
