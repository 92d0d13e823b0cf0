"""A decoder of a million parameters on the source of Python's standard library, dense.

    python -m experiments.sweep experiments/configs/python/{dense,probmask,gradual,transposable}.py

The other files of this folder begin with the same first phase, which the sweep trains once a seed,
and take as many steps after it. Each seed sees LIMIT windows of 128 bytes, spread over the library.
"""

from experiments.experiment import Experiment
from experiments.phases import Dense

adamw = {
    "batch": 16,
    "optimizer": "adamw",
    "learning_rate": 4e-3,
    "weight_decay": 0.1,
    "warmup": 0.1,
    "clip": 1.0,
}
experiment = Experiment(
    model="decoder1m",
    dataset="python",
    dataset_options={"context": 128, "test_records": 512},
    limit=2_048,
    evaluations=2,
    phases=(
        Dense(epochs=2, decay="constant", **adamw),
        Dense(epochs=2, name="anneal", **adamw),
    ),
)
