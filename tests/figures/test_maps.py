"""Maps of who teaches: the right voxel in the right place, in one scale, and nothing outside the brain."""

import numpy as np

from smml import figures


def test_maps_share_a_scale_and_end_where_the_brain_ends():
    values, labels = np.zeros((4, 5, 2)), np.zeros((4, 5, 2), int)
    values[0, 4, 1] = -3.0  # the patient's left, front
    labels[0, 4, 1] = 3
    brain = np.ones((4, 5, 2), bool)
    brain[3, 0] = False
    figure = figures.map_figure({"a": values, "b": 2 * values}, labels, brain, z=1, limit=2.0, unit="nats")
    heat, whole, enhancing = figure.data[:3]
    picture = np.asarray(heat.z)
    assert picture.shape == (5, 4)
    assert picture[0, 3] == -3.0, "front at the top, the patient's left on the right"
    assert np.isnan(picture[4, 0])
    assert np.isnan(picture).sum() == 1
    assert whole.z[0][3] == enhancing.z[0][3] == 1.0
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-2, 2)
    assert figure.data[3].coloraxis == heat.coloraxis == "coloraxis"
