"""Gradual magnitude pruning of a decoder of 7 billion parameters on C4, byte by byte, to 90%.

    python -m experiments.run experiments/configs/c4/decoder7b_gradual.py --data_dir=...

For a pod; its step has been compiled for one, but nobody has run it. A step sees a million bytes,
an epoch a gigabyte, which is read from disk as it is needed; --limit takes more.
"""

from experiments.experiment import Experiment
from experiments.phases import PruneGradually

adamw = {
    "batch": 512,
    "optimizer": "adamw",
    "learning_rate": 3e-4,
    "weight_decay": 0.1,
    "warmup": 0.02,
    "clip": 1.0,
}
experiment = Experiment(
    model="decoder7b_scanned",
    dataset="c4/en",
    dataset_options={"context": 2_048, "test_records": 8_192},
    limit=524_288,
    # For --mesh=data:...,model:8, say: heads and hidden units are shared.
    model_axes={"(queries|keys|values|gate|up)/kernel": -1, "(mixed|down)/kernel": -2},
    phases=(PruneGradually(epochs=20, every=100, **adamw),),
)
