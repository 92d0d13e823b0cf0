"""A decoder of a million parameters on the source of Python's standard library, dense.

    python -m experiments.run experiments/configs/python/dense.py

`make language` compares it with the other files of this folder. They begin with the same phase,
which the sweep trains once a seed, and take as many steps after it: 80 and 80, of 1,024 bytes each.
That is four epochs of 320 windows, spread over the library, and what three seeds in five minutes on
two cores allow; more (`--limit`) give better models.
"""

from experiments.experiment import Experiment
from experiments.phases import Dense

adamw = {
    "batch": 8,
    "optimizer": "adamw",
    "learning_rate": 4e-3,
    "weight_decay": 0.1,
    "warmup": 0.1,
    "clip": 1.0,
}
experiment = Experiment(
    model="decoder1m",
    dataset="python",
    dataset_options={"context": 128, "test_records": 256},
    limit=320,
    evaluations=1,
    phases=(
        Dense(epochs=2, decay="constant", **adamw),
        Dense(epochs=2, name="anneal", **adamw),
    ),
)
