"""Learned 2:4 patterns of the weights that decoder4m.py trains, which are frozen.

    python -m experiments.run experiments/configs/python/decoder4m_learned_patterns.py

For an accelerator. With --reuse=runs the network that decoder4m.py has left there is taken over.
"""

from dataclasses import replace

from experiments.configs.python.decoder4m import experiment as dense
from experiments.phases import LearnPattern

experiment = replace(dense, phases=(*dense.phases, LearnPattern(epochs=3, batch=64)))
grid = [{"learn.transposable": transposable} for transposable in (False, True)]
