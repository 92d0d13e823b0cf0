"""DeepHoyer on CIFAR-10, element-wise: ResNet-20, with the schedule of the authors' code.

    python -m experiments.run experiments/configs/cifar10/resnet20_hoyer.py --data_dir=...

Three times 164 epochs: for an accelerator. The strength is a starting point: sweep it with
`experiments.sweep --vary=regularize.strength=...`.
"""

from experiments.experiment import Experiment
from experiments.phases import Dense, FineTune, Regularize, Threshold

sgd = {
    "epochs": 164,
    "batch": 128,
    "learning_rate": 0.1,
    "weight_decay": 1e-4,
    "decay": (81 / 164, 122 / 164),
}
experiment = Experiment(
    model="resnet20",
    dataset="cifar10",
    phases=(
        Dense(**sgd),
        Regularize(**sgd, penalty="hoyer_square", strength=1e-5),
        Threshold(1e-4, rule="absolute"),
        FineTune(**sgd),
    ),
)
