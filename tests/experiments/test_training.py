"""When what happens in a phase, and what is compiled for it."""

import dataclasses

import pytest

from experiments import training
from experiments.phases import Dense
from tests.experiments.runs import SMALL, rows, run_phases


@pytest.mark.parametrize(("steps", "evaluations"), [(8, 4), (7, 3), (3, 5), (1, 1)])
def test_the_last_step_is_evaluated_and_distances_add_up(steps, evaluations):
    marks = training.evaluation_marks(steps, evaluations)
    assert max(marks) == sum(marks.values()) == steps
    assert len(marks) == min(steps, evaluations)


@pytest.mark.parametrize(("in_call", "stops"), [(1, range(1, 9)), (3, [2, 4, 6, 8])])
def test_calls_end_where_the_host_has_something_to_do(in_call, stops):
    experiment = dataclasses.replace(SMALL, steps_per_call=in_call)
    steps = training.Steps.of(Dense(2, batch=64), 256, experiment)
    found, step = [], 0
    while step < steps.total:
        step = steps.next_stop(step)
        found.append(step)
    assert found == [*stops]


TRACED = []


@dataclasses.dataclass(frozen=True)
class Counted(Dense):
    """Dense training that notes each tracing of its step."""

    def gradients(self, *args):
        TRACED.append("step")
        return super().gradients(*args)

    def current(self, *args):
        TRACED.append("evaluation")
        return super().current(*args)


@pytest.mark.parametrize("in_call", [1, 3])
@pytest.mark.usefixtures("relaxed_promotion", "one_device", "no_pictures")
def test_step_and_evaluation_are_traced_once(tmp_path, in_call):
    TRACED.clear()
    run_phases(tmp_path, Counted(epochs=3, batch=64), steps_per_call=in_call)
    assert sorted(TRACED) == ["evaluation", "step"]
    assert len(rows(tmp_path)) == SMALL.evaluations
