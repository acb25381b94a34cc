"""Every exercise can be solved, and is not solved before the reader has done anything."""

import pytest
from course_pages import FOLDER, SCRIPTS, Exercise, cells, exercises, numbered, solution_file

from smml import course

ALL = [exercise for script in SCRIPTS for exercise in exercises(script)]


@pytest.fixture(autouse=True)
def in_the_notebooks_folder(monkeypatch, tmp_path):
    """As the notebooks run, but where nothing may be simulated: the first cell and the exercises must stay cheap."""

    def too_much(*_, **__):
        pytest.fail("the notebook's first code cell or an exercise simulates a cohort; move that to a later cell")

    monkeypatch.chdir(FOLDER)
    monkeypatch.setenv("SMML_FAST", "1")
    monkeypatch.setenv("SMML_BUILD", str(tmp_path))
    monkeypatch.setattr(course, "FAST", True)
    monkeypatch.setattr(course, "simulate_cohort", too_much)
    monkeypatch.setattr(course, "outcomes", {})


def outcome(exercise: Exercise, attempt: str) -> str | None:
    """What the check says of an attempt, with the exercises before it solved: None, or why it is not solved."""
    namespace = {"__name__": "__main__"}
    earlier = [other.solution for other in exercises(exercise.script) if other.number < exercise.number]
    for source in (cells(exercise.script, "code")[0], *earlier, attempt, exercise.check):
        exec(compile(source, f"{exercise.script.name}, exercise {exercise.number}", "exec"), namespace)
    assert exercise.number in course.outcomes, f'the cell after the stub has no course.check("{exercise.number}")'
    return course.outcomes[exercise.number]


@pytest.mark.parametrize("exercise", ALL, ids=lambda exercise: exercise.number)
def test_an_untouched_exercise_is_not_solved(exercise):
    assert outcome(exercise, exercise.stub) is not None, "the check lets the stub pass"


@pytest.mark.parametrize("exercise", ALL, ids=lambda exercise: exercise.number)
def test_the_solution_solves_its_exercise(exercise):
    assert exercise.solution is not None, f"no cell '# Exercise {exercise.number}' in {solution_file(exercise.script)}"
    hint = outcome(exercise, exercise.solution)
    assert hint is None, f"the check says: {hint}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_has_two_to_four_exercises_with_tasks_and_solutions(script):
    number = int(script.stem[:2])
    found = [exercise.number for exercise in exercises(script)]
    assert found == [f"{number}.{i}" for i in range(1, len(found) + 1)]
    assert 2 <= len(found) <= 4
    text = "\n".join(cells(script, "markdown"))
    for exercise in found:
        assert f"### Exercise {exercise}: " in text, f"no task with the heading '### Exercise {exercise}: ...'"
    assert f"](solutions/{script.name})" in text, "the notebook does not link to its solutions"
    answers = "\n".join(cells(solution_file(script), "markdown"))
    assert [f"## Exercise {exercise}" in answers for exercise in found] == [True] * len(found)
    assert sorted(numbered(cells(solution_file(script), "code"))) == found, "a solution without an exercise"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_ends_with_key_points_exercises_and_what_to_read_next(script):
    lines = "\n".join(cells(script, "markdown")).splitlines()
    headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert headings[-3:] == ["Key points", "Exercises", "Read next"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_solutions_run_by_themselves(script):
    namespace = {"__name__": "__main__"}
    exec(compile(solution_file(script).read_text(encoding="utf-8"), script.name, "exec"), namespace)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_check_belongs_to_an_exercise(script):
    checked = [source for source in cells(script, "code") if "course.check(" in source]
    assert checked == [exercise.check for exercise in exercises(script)]
