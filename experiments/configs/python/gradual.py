"""Gradual magnitude pruning of a decoder of a million parameters: a tenth of its weights stays.

python -m experiments.run experiments/configs/python/gradual.py
"""

from dataclasses import replace

from experiments.configs.python.dense import adamw
from experiments.configs.python.dense import experiment as dense
from experiments.phases import PruneGradually

experiment = replace(
    dense, phases=(dense.phases[0], PruneGradually(epochs=2, dense_until=0.0, every=5, **adamw))
)
