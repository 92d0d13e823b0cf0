"""The log of a run that was killed while it wrote."""

import json

import pytest

from experiments.log import Log, rows_of
from experiments.tasks import Metric

METRIC = Metric("accuracy", higher_is_better=True, fraction=True)
ROW = {"number": 0, "step": 2, "dying_by_leaf": {"fc1/scale": 3}, "problems": []}
LINE = json.dumps(ROW) + "\n"


@pytest.mark.parametrize("cut", [1, LINE.index("}") + 1, len(LINE) - 1])
def test_a_line_that_was_cut_anywhere_is_no_row(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINE + LINE[:cut])
    assert rows_of(path) == [ROW]


def test_rows_of_a_phase_are_replaced(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = Log(path, METRIC)
    log.keep([{"number": number, "step": 1} for number in (0, 1)])
    for _ in range(2):
        log.replace(1, [{"number": 1, "step": 2}])
    assert log.rows == rows_of(path) == [{"number": 0, "step": 1}, {"number": 1, "step": 2}]
