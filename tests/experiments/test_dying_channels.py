"""Dying channels in the log and in the picture of a run."""

import json

import pytest
from matplotlib import pyplot as plt

from experiments import figures
from experiments.log import Log
from experiments.tasks import Metric

ACCURACY = Metric("accuracy", higher_is_better=True, fraction=True)


def logged(tmp_path, dying):
    phase = Log(tmp_path / "metrics.jsonl", ACCURACY).of_phase(0, "dense")
    phase.resume(0, 20)
    for step, of_leaf in enumerate(dying):
        phase.evaluation(step, step, 1.0, 0.5, 0.0, problems=[], dying=of_leaf)
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_the_log_has_all_and_those_of_each_leaf(tmp_path, capsys):
    rows = logged(tmp_path, [{"a/scale": 0, "b/scale": 0}, {"a/scale": 0, "b/scale": 1200}, {}])
    assert [row["dying"] for row in rows] == [0, 1200, None]
    assert [row["dying_by_leaf"] for row in rows] == [{}, {"b/scale": 1200}, {}]
    assert capsys.readouterr().out.count("1,200 dying channels") == 1


@pytest.mark.parametrize(("count", "shown"), [(0, False), (3, True)])
def test_the_picture_shows_them_as_soon_as_one_dies(tmp_path, count, shown):
    rows = logged(tmp_path, [{"scale": 0}, {"scale": count}])
    figure, axis = plt.subplots()
    figures._over_time(axis, rows, ACCURACY)
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert ("dying channels" in labels) == shown
    assert ("dying channels" in [each.get_ylabel() for each in figure.axes]) == shown
    plt.close(figure)
