"""What a run takes over from others."""

import dataclasses
import json
import shutil

import pytest

from experiments import outcomes
from experiments.log import Log, rows_of
from experiments.phases import Dense
from experiments.tasks import Metric
from tests.experiments.runs import SMALL

METRIC = Metric("accuracy", higher_is_better=True, fraction=True)
EXPERIMENT = dataclasses.replace(SMALL, phases=(Dense(epochs=1, batch=64),))
ROWS = [{"number": 0, "step": step, "seconds": 1.0} for step in (2, 4)]


@pytest.fixture
def finished(tmp_path):
    """A folder of runs, one of which has finished its phase."""
    run = tmp_path / "runs" / "one"
    name = outcomes.outcome_name(EXPERIMENT, 0)
    (run / name).mkdir(parents=True)
    (run / f"{name}.txt").write_text(outcomes.history(EXPERIMENT, 0))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return run.parent


def test_rows_are_taken_over_once_however_often_that_was_killed(tmp_path, finished, monkeypatch):
    folder = tmp_path / "two"
    folder.mkdir()

    def take_over():
        log = Log(folder / "metrics.jsonl", METRIC)
        outcomes.take_over(EXPERIMENT, folder, log, finished)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                take_over()
    take_over()
    assert rows_of(folder / "metrics.jsonl") == ROWS
    assert (folder / outcomes.outcome_name(EXPERIMENT, 0)).is_dir()
