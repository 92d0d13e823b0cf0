"""A task that has nothing to do with images runs through the same runner: the next byte of a text.

It is what a task costs: records, a batch of them, a loss, a metric. Lower is better here, and the
metric is no fraction.
"""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments import data, outcomes, run, sweep, training
from experiments.experiment import Experiment
from experiments.phases import Dense, FineTune, PruneMagnitudes, Reconstruct
from experiments.tasks import Metric, Task

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "one_device")

ALPHABET = 16


class Bigram(nnx.Module):
    """The next byte from this one, by a hidden layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(ALPHABET, 32, use_bias=False, rngs=rngs)
        self.head = nnx.Linear(32, ALPHABET, use_bias=False, rngs=rngs)

    def __call__(self, text):
        return self.head(nnx.relu(self.hidden(jax.nn.one_hot(text, ALPHABET))))


@dataclasses.dataclass(frozen=True)
class NextByte:
    """Records are {"text": int32 (records, length)}."""

    records_at_once = 1000
    metric = Metric("bits", higher_is_better=False)

    def build(self, model, rngs):
        return Bigram(rngs)

    def batch(self, records, key):
        return records["text"]

    def loss(self, model, text):
        return self._losses(model, text).mean()

    def inputs(self, records):
        return records["text"][:, :-1]

    def outputs(self, model, inputs, *, train):
        return model(inputs)

    def scores(self, model, records):
        return self._losses(model, records["text"]).mean(-1) / jnp.log(2.0)

    def findings(self, model, mask):
        return {}

    def _losses(self, model, text):
        logits = model(text[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:])


TASK: Task = NextByte()


@pytest.fixture(scope="module")
def text():
    """Each byte is followed by the one after it, or by any."""
    rng = np.random.default_rng(0)
    steps = np.where(rng.random((512, 16)) < 0.9, 1, rng.integers(0, ALPHABET, (512, 16)))
    records = (np.cumsum(steps, 1) % ALPHABET).astype(np.int32)
    return data.Dataset("text", TASK, {"text": records[:448]}, {"text": records[448:]})


DENSE, FINE_TUNE = Dense(epochs=8, batch=32, learning_rate=0.3), FineTune(epochs=2, batch=32)
EXPERIMENT = Experiment(
    "bigram", "text", (DENSE, PruneMagnitudes(), FINE_TUNE), sparsity=0.5, evaluations=2
)
UNIFORM, ENTROPY = 4.0, 0.81  # bits: knowing nothing; of the source


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """A folder with an uninterrupted run, and its result."""
    folder = tmp_path_factory.mktemp("text")
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(jax, "device_count", lambda: 1)
        return folder, run.run(EXPERIMENT, text, folder)


def outcome(folder, phase):
    like, _ = run.initial_network("bigram", TASK, jax.random.key(0))
    return outcomes.load(folder / f"network-{phase}", like)


def test_it_is_trained_pruned_and_logged(whole):
    folder, result = whole
    assert ENTROPY < result["bits"] < 2
    assert result["kept"] == 512 and result["weights"] == 1024
    assert result["metric"] == {"name": "bits", "higher_is_better": False, "fraction": False}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["phase"], row["step"]) for row in rows] == [
        ("dense", 56),
        ("dense", 112),
        ("fine-tune", 14),
        ("fine-tune", 28),
    ]
    assert UNIFORM > rows[0]["bits"] > rows[1]["bits"]
    assert rows[-1]["bits"] == result["bits"]
    tuned = outcome(folder, "2-fine-tune")
    chex.assert_trees_all_equal(tuned.weights, tuned.masked_weights())
    assert (folder / "picture.png").exists()


def test_it_resumes_to_the_same_bits(text, whole, tmp_path, monkeypatch):
    class Interrupted(Exception):
        pass

    def save_and_stop(self, step, state):
        if step == 20:
            self._checkpointer.save(step, state)
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(training.Checkpoints, "save_if_due", save_and_stop)
        with pytest.raises(Interrupted):
            run.run(EXPERIMENT, text, tmp_path)
    run.run(EXPERIMENT, text, tmp_path)
    for phase in ("0-dense", "2-fine-tune"):
        chex.assert_trees_all_equal(outcome(tmp_path, phase), outcome(whole[0], phase))


@dataclasses.dataclass(frozen=True)
class Choosing(Dense):
    """Ends with the better of what was trained and nothing."""

    needs_heldout = True

    def end(self, weights, network, sparsity, key, score):
        nothing = jax.tree.map(jnp.zeros_like, weights)
        return network._replace(weights=max(weights, nothing, key=score))


def test_phases_choose_by_scores_of_which_the_highest_is_best(text, tmp_path):
    experiment = dataclasses.replace(
        EXPERIMENT, phases=(Choosing(4, batch=32, learning_rate=0.3),), holdout=64
    )
    result = run.run(experiment, text, tmp_path)
    assert result["heldout_bits"] < UNIFORM - 0.5
    assert result["heldout_bits"] != result["bits"]


def test_it_calibrates_and_a_sweep_compares_it(text, whole, tmp_path):
    pattern = Reconstruct(n=1, m=4, where="head", records=128, batch=32)
    experiment = dataclasses.replace(EXPERIMENT, phases=(DENSE, pattern))
    other = run.run(experiment, text, tmp_path, reuse=whole[0].parent)
    assert other["kept"] == 512 + 128
    assert other["bits"] < UNIFORM
    rows = [sweep.summary(name, {}, [each]) for name, each in (("a", whole[1]), ("b", other))]
    header, _, first, _ = sweep.as_markdown(rows).splitlines()
    assert "| test bits |" in header
    assert f"| {whole[1]['bits']:.2f} ± 0.00 |" in first
    sweep.figures.sweep_picture(rows, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").exists()
