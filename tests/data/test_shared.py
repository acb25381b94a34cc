"""Prepared cases in shared memory: they come back whole, whoever wrote them, and no more is kept than was allowed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smml.data.preprocessing import Geometry, PreparedCase
from smml.data.shared import SharedCases

pytestmark = pytest.mark.skipif(SharedCases.of(1, 1) is None, reason="processes share memory if they are forked")
# Six of the largest cases that are drawn here.
ENOUGH = 100_000


def entry(seed: int, shape: tuple[int, int, int] = (5, 4, 3), tumour: int = 7):
    random = np.random.default_rng(seed)
    image = torch.from_numpy(random.normal(size=(4, *shape)).astype(np.float32))
    label = torch.from_numpy(random.integers(0, 4, shape).astype(np.uint8))
    places = {"tumour": random.integers(0, 99, tumour).astype(np.int32), "brain": np.arange(seed % 5, dtype=np.int32)}
    geometry = object.__new__(Geometry)
    return PreparedCase(image, torch.tensor([True, False, True, True]), label, geometry), places


def assert_same(found, expected):
    (one, places), (other, others) = found, expected
    for name in ("image", "available", "label"):
        assert getattr(one, name).dtype == getattr(other, name).dtype
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert places.keys() == others.keys()
    for name in places:
        assert places[name].dtype == others[name].dtype
        assert np.array_equal(places[name], others[name])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 40)), min_size=1, max_size=9
    ),
    st.integers(1, 60_000) | st.just(ENOUGH),
)
def test_what_is_kept_comes_back_and_the_first_of_a_number_stays(puts, size):
    shared, first = SharedCases(6, size), {}
    for seed, (number, shape, tumour) in enumerate(puts):
        one = entry(seed, shape, tumour)
        shared.put(number, one)
        found = shared.get(number)
        if found is not None:
            first.setdefault(number, one)
        for known, expected in first.items():
            assert_same(shared.get(known), expected)
    assert sum(prepared.image.nbytes for prepared, _ in first.values()) <= size
    if size == ENOUGH:
        assert len(first) == len({number for number, *_ in puts})


def test_what_another_process_keeps_is_found_here_and_shares_its_memory():
    shared = SharedCases(2, 100_000)
    process = torch.multiprocessing.get_context("fork").Process(target=shared.put, args=(1, entry(3)))
    process.start()
    process.join()
    assert shared.get(0) is None
    assert_same(shared.get(1), entry(3))
    # Both are held, so a copy would lie elsewhere.
    (one, _), (other, _) = shared.get(1), shared.get(1)
    assert one.image.data_ptr() == other.image.data_ptr()


@pytest.mark.parametrize("size", [0, -1, 2**80])
def test_where_there_is_no_such_memory_there_is_none(size):
    assert SharedCases.of(3, size) is None
    assert SharedCases.of(3, 1000) is not None
