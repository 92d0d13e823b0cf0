"""Transposable 4:8 masks on ImageNet: ResNet-18, from scratch, with the schedule of the paper.

    python -m experiments.run experiments/configs/imagenet/resnet18_nm.py --data_dir=...

120 epochs: for a pod. `--set=train.transposable=False` gives plain N:M for comparison.
"""

from experiments.experiment import Experiment
from experiments.phases import TrainPattern

experiment = Experiment(
    model="resnet18",
    dataset="imagenet2012",
    phases=(
        TrainPattern(
            epochs=120,
            batch=512,
            learning_rate=0.2,
            weight_decay=5e-5,
            n=4,
            m=8,
            transposable=True,
            every=40,
            pruned_decay=2e-4,
            where="blocks.*kernel",
        ),
    ),
)
