"""Settings of phases that make no sense are refused when they are set."""

import pytest

from experiments import phases

WRONG = {
    phases.Dense: [
        {"learning_rate": -1},
        {"weight_decay": -1},
        {"clip": 0},
        {"clip": float("nan")},
        {"decay": (0.5, 2)},
    ],
    phases.Regularize: [{"strength": -1}, {"clip": -1}],
    phases.Threshold: [{"value": -1}],
    phases.Search: [
        {"clip": -1},
        {"probability_learning_rate": -1},
        {"start": 0},
        {"start": 2},
        {"dense_until": -1},
        {"reach_sparsity_at": 5},
        {"final_temperature": 0},
        {"final_temperature": 2},
        {"draws": 0},
    ],
    phases.Extract: [
        {"learning_rate": -1},
        {"scale_learning_rate": -1},
        {"temperature": 0},
        {"strength": -1},
    ],
    phases.TrainGates: [{"travel": 0}, {"strength": -1}, {"sharpest": 1}, {"open_from": 1}],
    phases.Compress: [
        {"budget": 0},
        {"strength": 0},
        {"final_strength": 0},
        {"projections": 0},
        {"most_bits": 9},
        {"place_bits": -1},
    ],
    phases.TrainQuantized: [{"bits": 0}, {"bits": 9}, {"clip": 0}],
    phases.LearnPattern: [{"learning_rate": -1}, {"prior": -1}, {"final_temperature": 0}],
    phases.PruneMagnitudes: [{"part": 0}, {"part": 2}],
    phases.PruneGradually: [{"dense_until": -1}, {"reach_sparsity_at": 5}, {"every": 0}],
    phases.PruneAlternately: [{"dense_until": -1}, {"sparse_from": 2}, {"turn": 0}],
    phases.TrainPattern: [{"every": 0}, {"pruned_decay": -1}, {"learning_rate": -1}],
    phases.Regrow: [{"by": "magic"}, {"fraction": 2}, {"every": 0}, {"until": 2}],
    phases.PruneAtStart: [{"records": 0}, {"temperature": 0}, {"seed": -1}],
    phases.Reconstruct: [{"method": "magic"}, {"records": 0}, {"batch": -1}, {"damping": -1}],
    phases.PruneLayers: [
        {"method": "magic"},
        {"scope": "global"},
        {"pattern": "2:x"},
        {"batch": 0},
        {"damping": -1},
    ],
    phases.Recalibrate: [{"records": 0}, {"batch": 0}, {"passes": 0}],
    phases.PruneChannels: [{"budget": 0}, {"multiple_of": 0}, {"where": "["}, {"of": "time"}],
    phases.PruneBySensitivity: [{"records": 0}, {"batch": 0}, {"seed": -1}],
    phases.RemoveDying: [{"below": -1}],
}
CASES = [(phase, setting) for phase, settings in WRONG.items() for setting in settings]
REQUIRED = {"epochs": 1, "value": 1.0}  # where a phase has them


@pytest.mark.parametrize(("phase", "setting"), CASES)
def test_settings_that_make_no_sense_are_refused(phase, setting):
    (field,) = setting
    names = phase.__dataclass_fields__
    required = {name: value for name, value in REQUIRED.items() if name in names}
    phase(**required)
    with pytest.raises(ValueError, match=rf"^{field}\b"):
        phase(**(required | setting))
