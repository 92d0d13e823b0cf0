"""Transposable 2:4 masks of a decoder of a million parameters, which follow the weights.

python -m experiments.run experiments/configs/python/transposable.py
"""

from dataclasses import replace

from experiments.configs.python.dense import adamw
from experiments.configs.python.dense import experiment as dense
from experiments.phases import TrainPattern

experiment = replace(
    dense, phases=(dense.phases[0], TrainPattern(epochs=2, transposable=True, every=10, **adamw))
)
