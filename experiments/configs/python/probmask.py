"""ProbMask on a decoder of a million parameters: a tenth of its weights stays.

python -m experiments.run experiments/configs/python/probmask.py
"""

from dataclasses import replace

from experiments.configs.python.dense import adamw
from experiments.configs.python.dense import experiment as dense
from experiments.phases import FineTune, Search

experiment = replace(
    dense,
    phases=(
        dense.phases[0],
        Search(
            epochs=1,
            dense_until=0.0,
            draws=1,
            probability_learning_rate=0.1,
            **adamw,
            decay="constant",
        ),
        FineTune(epochs=1, decay="cosine", **adamw),
    ),
)
