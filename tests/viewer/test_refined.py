"""The shipped checkpoint with refinement in the viewer: four predictions to choose from."""

import numpy as np
import pytest
import torch

from smml.data import find_cases, read_case
from smml.inference import Predictor
from smml.models.decision import labelling
from smml.viewer import ModalityViewer
from smml.viewer.display import Display


@pytest.fixture(scope="module")
def predictor():
    predictor = Predictor.from_checkpoint("tiny-refined", window=32)
    # On the case's own coarse grid: worse, and many times faster.
    predictor.spacing = None
    return predictor


@pytest.fixture(scope="module")
def viewer(small_cohort, predictor):
    viewer = ModalityViewer(read_case(find_cases(small_cohort)[0]), predictor, subset="flair+t2", size=120)
    assert viewer.wait(300)
    yield viewer
    viewer.close()


def test_refined_comes_first_and_students_and_branches_can_be_chosen(viewer):
    assert viewer.controls.source.options == ("refined", "mean", "branch 1", "branch 2")
    assert viewer.state.source == "refined"
    labels = viewer.result.labels
    assert len({array.tobytes() for array in labels.values()}) == 4, "four predictions that differ"


def test_each_choice_is_what_the_predictor_says(viewer, predictor):
    case = viewer.case
    refined = predictor.segment(predictor.encode(case), "flair+t2", branches=True)
    wanted = {"refined": refined.labels, "mean": refined.student.labels}
    voxel_ml = float(np.prod(case.spacing)) / 1000
    # By the same rule as the others.
    rule = predictor.decision.from_subset(refined.subset)
    for number, probabilities in enumerate(refined.student.branches, start=1):
        making = labelling(rule, predictor.scheme, case.shape, voxel_ml)
        for k, probability in enumerate(torch.from_numpy(probabilities)):
            making.see(k, probability)
        wanted[f"branch {number}"] = making.labels()
    for source, labels in wanted.items():
        assert np.array_equal(viewer.result.labels[source], labels), source


def test_choosing_changes_picture_legend_and_scores(viewer):
    # The slice on which the four differ most.
    display = Display.of(viewer.case)
    arrays = [display.turned(array) for array in viewer.result.labels.values()]
    differing = sum((array != arrays[0]).sum(axis=(0, 1)) for array in arrays[1:])
    x, y, _ = viewer.state.position
    viewer.show(position=(x, y, int(differing.argmax())))
    frames = {}
    for source in viewer.controls.source.options:
        viewer.controls.source.value = source
        assert viewer.wait(60)
        frames[source] = bytes(viewer.controls.planes["axial"].png)
        assert f"prediction, {source}" in viewer.controls.legend.value
        assert source in viewer.controls.scores.value
        assert (viewer.result.subset, source) in viewer.scores
    assert len(set(frames.values())) >= 3
