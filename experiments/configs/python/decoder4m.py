"""A decoder of four million parameters on the source of Python's standard library, dense.

    python -m experiments.run experiments/configs/python/decoder4m.py

For an accelerator: 6,560 steps of 16,384 bytes each, ten epochs of all 42,000 windows. What is left
of it when it is pruned without training, `benchmarks.one_shot` says.
"""

from dataclasses import replace

from experiments.configs.python.dense import experiment as small

how = {"epochs": 10, "batch": 64, "learning_rate": 3e-3, "warmup": 0.05, "decay": "cosine"}
experiment = replace(
    small,
    model="decoder4m",
    dataset_options={"context": 256},
    limit=None,
    evaluations=10,
    steps_per_call=50,
    phases=(replace(small.phases[0], **how),),
)
