"""DeepHoyer on ImageNet, element-wise: ResNet-50, with the schedule of the authors' code.

    python -m experiments.run experiments/configs/imagenet/resnet50_hoyer.py --data_dir=...

Three times 90 epochs: for a pod. The strength is a starting point.
"""

from experiments.experiment import Experiment
from experiments.phases import Dense, FineTune, Regularize, Threshold

sgd = {"epochs": 90, "batch": 256, "weight_decay": 1e-4, "decay": (1 / 3, 2 / 3)}
experiment = Experiment(
    model="resnet50",
    dataset="imagenet2012",
    phases=(
        Dense(learning_rate=0.1, **sgd),
        Regularize(learning_rate=0.1, penalty="hoyer_square", strength=1e-6, **sgd),
        Threshold(1e-4, rule="absolute"),
        FineTune(learning_rate=0.01, **sgd),
    ),
)
