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
