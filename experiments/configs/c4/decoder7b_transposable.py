"""Transposable 2:4 masks of a decoder of 7 billion parameters, as decoder7b_gradual.py otherwise.

    python -m experiments.run experiments/configs/c4/decoder7b_transposable.py --data_dir=...

Straight-through: pruned weights live on behind the mask, and decay a little faster.
"""

from dataclasses import replace

from experiments.configs.c4.decoder7b_gradual import adamw
from experiments.configs.c4.decoder7b_gradual import experiment as gradual
from experiments.phases import TrainPattern

experiment = replace(
    gradual,
    phases=(TrainPattern(epochs=20, transposable=True, every=40, pruned_decay=2e-4, **adamw),),
)
