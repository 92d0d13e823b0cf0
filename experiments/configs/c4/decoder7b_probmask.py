"""ProbMask on a decoder of 7 billion parameters on C4, otherwise as decoder7b_gradual.py.

python -m experiments.run experiments/configs/c4/decoder7b_probmask.py --data_dir=...
"""

from dataclasses import replace

from experiments.configs.c4.decoder7b_gradual import adamw
from experiments.configs.c4.decoder7b_gradual import experiment as gradual
from experiments.phases import FineTune, Search

experiment = replace(
    gradual,
    phases=(
        Search(epochs=15, draws=1, **adamw),
        FineTune(epochs=5, decay="cosine", **adamw),
    ),
)
