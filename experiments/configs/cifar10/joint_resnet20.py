"""Joint pruning and quantization on CIFAR-10: ResNet-20 (270,000 weights, a megabyte) in few bytes.

    python -m experiments.run experiments/configs/cifar10/joint_resnet20.py --data_dir=...

    python -m experiments.sweep experiments/configs/cifar10/*_resnet20.py --data_dir=...

compares it with pruning alone, quantization alone, and both one after the other, in as many epochs.
BatchNorm's scales, biases and averages, 11 kB of each file, are never compressed.
"""

from experiments.experiment import Experiment
from experiments.phases import Compress, Dense, TrainQuantized

sgd = {"batch": 128, "learning_rate": 0.1, "weight_decay": 5e-4, "decay": "cosine"}
gently = {**sgd, "learning_rate": 0.02}
experiment = Experiment(
    model="resnet20",
    dataset="cifar10",
    holdout=5_000,
    export=True,
    evaluations=4,
    phases=(
        Dense(epochs=40, warmup=0.05, **sgd),
        Compress(epochs=40, strength=1e-3, final_strength=3e-2, **gently),
        TrainQuantized(epochs=20, **gently),
    ),
)
grid = [
    {"compress.budget": budget, "compress.place_bits": place}
    for budget, place in ((8_000, 0), (16_000, 0), (32_000, 0), (32_000, 6))
]
