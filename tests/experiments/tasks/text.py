"""A small text and small decoders, for runs of a few seconds."""

import dataclasses
import functools

import jax
import numpy as np

from experiments import data, outcomes, run
from experiments.devices import Devices
from experiments.experiment import Experiment
from experiments.models.transformer import Decoder, Size
from experiments.phases import Dense
from experiments.tasks.language import Language

ALPHABET = 16
UNIFORM, ENTROPY = 4.0, 0.81  # bits a byte: knowing the alphabet alone; of the source
SIZE = Size(width=16, depth=1, heads=2, groups=1, hidden=24)
WEIGHTS = 16 * (16 + 8 + 8 + 16) + 3 * 16 * 24

ADAM = {"batch": 32, "optimizer": "adamw", "learning_rate": 0.02, "clip": 1.0}
DENSE = Dense(epochs=4, warmup=0.1, decay="constant", **ADAM)
EXPERIMENT = Experiment("tiny", "text", (DENSE,), sparsity=0.5, evaluations=2, steps_per_call=7)


@dataclasses.dataclass(frozen=True)
class Tiny(Language):
    """The next byte by a decoder of one layer: `tiny`, or `tiny_scanned`."""

    def build(self, model, rngs):
        return Decoder(SIZE, model.endswith("_scanned"), rngs=rngs)


@functools.cache
def text() -> data.Dataset:
    """Each byte is followed by the one after it, or by any."""
    rng = np.random.default_rng(0)
    steps = np.where(rng.random((512, 16)) < 0.9, 1, rng.integers(0, ALPHABET, (512, 16)))
    records = (np.cumsum(steps, 1) % ALPHABET).astype(np.uint8)
    return data.Dataset("text", Tiny(), records[:448], records[448:])


def run_phases(folder, *phases, reuse=None, **changes):
    """The result of `EXPERIMENT` with other phases, and what each of them left."""
    experiment = dataclasses.replace(EXPERIMENT, phases=phases, **changes)
    result = run.run(experiment, text(), folder, reuse=reuse)
    like, _ = run.initial_network(experiment.model, Tiny(), jax.random.key(0))
    names = [outcomes.outcome_name(experiment, number) for number in range(len(phases))]
    return result, [outcomes.load(folder / name, like, Devices.all()) for name in names]
