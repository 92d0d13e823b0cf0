"""A decoder of four million parameters on the source of Python's standard library, dense.

    python -m experiments.run experiments/configs/python/decoder4m.py

For an accelerator: 6,560 steps of 16,384 bytes each, ten epochs of all 42,000 windows. What is left
of it when it is pruned without training, `benchmarks.one_shot` says.
"""

from experiments.configs.python.dense import adamw
from experiments.experiment import Experiment
from experiments.phases import Dense

experiment = Experiment(
    model="decoder4m",
    dataset="python",
    dataset_options={"context": 256},
    evaluations=10,
    steps_per_call=50,
    phases=(Dense(epochs=10, **adamw | {"batch": 64, "learning_rate": 3e-3, "warmup": 0.05}),),
)
