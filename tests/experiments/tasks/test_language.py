"""Bits a byte, and every phase on a decoder: none knows images, and lower is better here."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprune as jp
from experiments import models, run, sweep, training
from experiments.phases import (
    Dense,
    Extract,
    FineTune,
    LearnPattern,
    PruneChannels,
    PruneGradually,
    PruneMagnitudes,
    PrunePattern,
    Recalibrate,
    Reconstruct,
    Regularize,
    Search,
    Shrink,
    Threshold,
    TrainPattern,
)
from experiments.tasks import Task
from experiments.tasks.language import Language
from experiments.usage import UsageError
from tests.experiments.phases.patterns import check_pattern
from tests.experiments.runs import kept_of, rows
from tests.experiments.tasks.text import (
    ADAM,
    DENSE,
    ENTROPY,
    UNIFORM,
    WEIGHTS,
    run_phases,
)

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "one_device", "no_pictures")

TASK: Task = Language()
HALF = round(0.5 * WEIGHTS)


class Copying(nnx.Module):
    """Thinks a byte comes again with probability 1/2, otherwise any of the other 255."""

    def __call__(self, tokens, train):
        again = jax.nn.one_hot(tokens, 256)
        return jnp.log(jnp.where(again == 1, 0.5, 0.5 / 255))


def test_scores_are_the_mean_bits_of_each_record():
    records = jnp.asarray([[7, 7, 7], [7, 7, 9], [1, 2, 3]], jnp.uint8)
    rare = 1 + math.log2(255)
    scores = TASK.scores(Copying(), records)
    np.testing.assert_allclose(scores, [1, (1 + rare) / 2, rare], rtol=1e-5)
    batch = TASK.batch(records, jax.random.key(0))
    np.testing.assert_allclose(TASK.loss(Copying(), batch), scores.mean(), rtol=1e-5)


def test_models_are_decoders_by_name():
    built = nnx.eval_shape(lambda: TASK.build("decoder1m_scanned", nnx.Rngs(0)))
    assert isinstance(built, models.Decoder)
    with pytest.raises(UsageError, match="unknown model 'lenet5': choose one of decoder1m"):
        TASK.build("lenet5", nnx.Rngs(0))


# Runs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """The folder of an uninterrupted run of `DENSE`, its result and its network."""
    folder = tmp_path_factory.mktemp("text") / "dense"
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(jax, "device_count", lambda: 1)
        patch.setattr(run.figures, "run_picture", lambda *args: None)
        result, (network,) = run_phases(folder, DENSE)
        return folder, result, network


def test_it_is_trained_and_logged(dense):
    folder, result, network = dense
    assert ENTROPY < result["bits_per_byte"] < 0.6 * UNIFORM
    assert result["metric"] == {
        "name": "bits_per_byte",
        "higher_is_better": False,
        "fraction": False,
    }
    assert [(row["phase"], row["step"]) for row in rows(folder)] == [("dense", 28), ("dense", 56)]
    assert rows(folder)[0]["bits_per_byte"] > rows(folder)[1]["bits_per_byte"]
    assert abs(rows(folder)[1]["loss"] - rows(folder)[1]["bits_per_byte"]) < 1.5  # the same unit
    assert result["kept"] == result["weights"] == kept_of(network.mask) == WEIGHTS
    assert result["dense_parameters"] == 256 * 16 + 3 * 16  # the embedding and the norms


def test_it_resumes_to_the_same_bits(dense, tmp_path, monkeypatch):
    class Interrupted(Exception):
        pass

    def save_and_stop(self, step, state):
        if step == 21:
            self._checkpointer.save(step, state)
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(training.Checkpoints, "save_if_due", save_and_stop)
        with pytest.raises(Interrupted):
            run_phases(tmp_path, DENSE)
    _, (network,) = run_phases(tmp_path, DENSE)
    chex.assert_trees_all_equal(network, dense[2])


SEARCH = Search(2, probability_learning_rate=0.03, draws=1, **ADAM)
FINE_TUNE = FineTune(1, **ADAM)
GRADUAL = PruneGradually(2, every=3, **ADAM)
REGULARIZE = Regularize(1, strength=1e-4, penalty="group_hoyer_square", **ADAM)
TRAIN = TrainPattern(1, transposable=True, **ADAM)
LEARN = LearnPattern(epochs=1, batch=32)
RECONSTRUCT = Reconstruct(records=128, batch=32)
EXTRACT = Extract(1, batch=32)


@pytest.mark.parametrize(
    ("phases", "kept"),
    [
        ((SEARCH, FINE_TUNE), HALF),
        ((GRADUAL,), HALF),
        pytest.param((PruneMagnitudes(), FINE_TUNE), HALF, marks=pytest.mark.slow),
        pytest.param((REGULARIZE, Threshold(0.1)), None, marks=pytest.mark.slow),
        ((TRAIN,), HALF),
        pytest.param((LEARN,), HALF, marks=pytest.mark.slow),
        ((PrunePattern(),), HALF),
        pytest.param((RECONSTRUCT, Recalibrate()), HALF, marks=pytest.mark.slow),
        pytest.param((EXTRACT,), None, marks=pytest.mark.slow),
    ],
    ids=lambda case: case[0].name if isinstance(case, tuple) else "",
)
def test_every_phase_goes_on_from_the_dense_network(dense, tmp_path, phases, kept):
    result, networks = run_phases(tmp_path, DENSE, *phases, reuse=dense[0].parent)
    mask, weights = networks[-1].mask, networks[-1].weights
    assert kept_of(mask) == result["kept"] == (kept or result["kept"]) < WEIGHTS
    assert result["weights"] == WEIGHTS  # the embedding is dense
    assert result["problems"] == []
    worst = 2 * UNIFORM if phases == (EXTRACT,) else UNIFORM  # random weights, hardly trained
    assert ENTROPY < result["bits_per_byte"] < worst
    if phases in ((GRADUAL,), (TRAIN,), (RECONSTRUCT, Recalibrate())):
        pruned = jp.apply_mask(weights, mask)
        chex.assert_trees_all_equal(pruned, weights)
    if phases == (TRAIN,):
        check_pattern(mask["layers"][0]["mlp"]["gate"]["kernel"][...], 2, 4, True)


def test_reconstruction_makes_up_for_what_a_pattern_prunes(dense, tmp_path):
    bits = [
        run_phases(tmp_path / phase.name, DENSE, phase, reuse=dense[0].parent)[0]["bits_per_byte"]
        for phase in (RECONSTRUCT, PrunePattern())
    ]
    assert bits[0] < bits[1]


def test_a_stack_of_layers_has_a_pattern_in_each(tmp_path):
    phase = PrunePattern(transposable=True)
    result, (network,) = run_phases(tmp_path, phase, model="tiny_scanned")
    mask = network.mask["layers"]["mlp"]["gate"]["kernel"][...]
    assert mask.shape == (1, 16, 24) and result["kept"] == HALF
    check_pattern(mask[0], 2, 4, True)


@pytest.mark.slow
def test_a_stack_of_layers_is_trained(tmp_path):
    result, (searched, trained) = run_phases(tmp_path, SEARCH, TRAIN, model="tiny_scanned")
    assert kept_of(searched.mask) == HALF
    check_pattern(trained.weights["layers"]["mlp"]["gate"]["kernel"][0], 2, 4, True)
    assert result["problems"] == []


def test_reconstruction_sees_the_layers_of_a_stack(tmp_path):
    result, _ = run_phases(tmp_path, RECONSTRUCT, model="tiny_scanned")
    assert 2 * result["kept"] == result["weights"] == WEIGHTS


@pytest.mark.parametrize("model", ["tiny", pytest.param("tiny_scanned", marks=pytest.mark.slow)])
def test_hidden_units_leave(tmp_path, model):
    phases = (PruneChannels(where="mlp"), Shrink())
    result, networks = run_phases(tmp_path, *phases, model=model, sparsity=0.1)
    before, after = (result["size"][when]["flops"] for when in ("before", "after"))
    assert 0.85 * before < after <= 0.9 * before
    layers = networks[-1].weights["layers"]
    layer = layers[0] if model == "tiny" else layers
    shape = lambda part, name: layer[part][name]["kernel"].shape[-2:]
    hidden = shape("mlp", "gate")[1]
    assert hidden < 24 and shape("mlp", "down") == (hidden, 16)
    assert shape("attention", "queries") == (16, 16)


@pytest.mark.slow
def test_pressed_channels_leave(tmp_path):
    press = Regularize(1, strength=1e-3, penalty="channel_hoyer_square", **ADAM)
    phases = (press, PruneChannels(where="mlp"), Shrink(), FINE_TUNE)
    result, _ = run_phases(tmp_path, *phases, sparsity=0.1)
    assert result["size"]["after"]["flops"] <= 0.9 * result["size"]["before"]["flops"]


@pytest.mark.slow
def test_the_width_cannot_leave(tmp_path):
    with pytest.raises(RuntimeError, match="choose what leaves with where of prune-channels"):
        run_phases(tmp_path, PruneChannels(where="embedding"), Shrink(), sparsity=0.3)


def test_a_budget_that_hidden_units_cannot_meet_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"prune-channels: .*budget"):
        run_phases(tmp_path, PruneChannels(where="mlp"), sparsity=0.9)


@dataclasses.dataclass(frozen=True)
class Choosing(Dense):
    """Ends with the better of what was trained and nothing."""

    needs_heldout = True

    def end(self, weights, network, sparsity, key, score):
        nothing = jax.tree.map(jnp.zeros_like, weights)
        return network._replace(weights=max(weights, nothing, key=score))


def test_phases_choose_by_scores_of_which_the_highest_is_best(tmp_path):
    result, _ = run_phases(tmp_path, Choosing(3, **ADAM), holdout=64)
    assert result["heldout_bits_per_byte"] < UNIFORM - 0.5
    assert result["heldout_bits_per_byte"] != result["bits_per_byte"]


def test_a_sweep_compares_bits(dense, tmp_path):
    other = dense[1] | {"bits_per_byte": 2.5, "kept": HALF}
    table = [sweep.summary(name, {}, [each]) for name, each in (("a", dense[1]), ("b", other))]
    header, _, first, second = sweep.as_markdown(table).splitlines()
    assert "| test bits_per_byte |" in header
    assert f"| {dense[1]['bits_per_byte']:.3f} ± 0.000 |" in first and "| 2.500 ± " in second
    sweep.figures.sweep_picture(table, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").exists()
