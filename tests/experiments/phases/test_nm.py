import pytest

from experiments.phases import Dense, PrunePattern, Reconstruct, TrainPattern
from experiments.usage import UsageError
from tests.experiments.phases.patterns import HIDDEN, check_pattern
from tests.experiments.runs import run_phases

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "one_device", "no_pictures")


@pytest.mark.parametrize(("straight_through", "transposable"), [(False, False), (True, True)])
def test_training_keeps_the_pattern(straight_through, transposable, tmp_path):
    phase = TrainPattern(
        epochs=10,
        batch=64,
        transposable=transposable,
        straight_through=straight_through,
        pruned_decay=1e-3,
        every=3,
        where=HIDDEN,
    )
    result, network = run_phases(tmp_path, phase, limit=512, evaluations=2, steps_per_call=8)
    for name in ("fc1", "fc2"):
        check_pattern(network.weights[name]["kernel"][...], 2, 4, transposable)
        mask = network.mask[name]["kernel"][...]
        assert mask.mean() == 0.5
        check_pattern(mask, 2, 4, transposable)
    assert network.mask["fc3"]["kernel"][...].all()
    assert result["accuracy"] > 0.8
    assert result["problems"] == []


@pytest.mark.parametrize("phase", [PrunePattern(where="bias"), Reconstruct(n=5)])
def test_patterns_that_no_leaf_can_have_are_refused_before_the_run(phase, tmp_path):
    with pytest.raises(UsageError, match=f"{phase.name}: (no leaf can be pruned|.*5)"):
        run_phases(tmp_path, Dense(epochs=1, batch=64), phase)
    assert not any(tmp_path.iterdir())
