"""Figures of relations: every token and every number is drawn where it belongs."""

import numpy as np

from smml import figures


def test_matrices_share_one_scale_that_is_white_at_zero():
    first, second = np.eye(3), -4 * np.eye(3)
    figure = figures.matrix_figure({"a": first, "b": second})
    assert np.array_equal(np.asarray(figure.data[1].z), second)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-4, 4)
    assert figure.data[0].text[0][0] == "1.00"
    assert figures.matrix_figure({"zero": np.zeros((40, 40))}).data[0].text is None


def test_tokens_are_drawn_by_group_in_every_panel_with_one_legend():
    points = {"one": np.arange(8.0).reshape(4, 2), "two": np.zeros((4, 2)), "three": np.ones((4, 2))}
    groups = ["a", "b", "a", "a"]
    figure = figures.token_figure(points, groups, {"a": "#000000", "b": "#ffffff"}, columns=2)
    assert len(figure.data) == 6
    assert [list(trace.x) for trace in figure.data[:2]] == [[0, 4, 6], [2]]
    assert [trace.name for trace in figure.data if trace.showlegend] == ["a", "b"]
    assert {figure.layout.yaxis.scaleanchor, figure.layout.yaxis3.scaleanchor} == {"x", "x3"}
