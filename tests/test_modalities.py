"""Modalities and subsets: one order everywhere, every spelling understood, every mistake named."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smml.errors import InputError
from smml.modalities import MODALITIES, SUBSETS, mask_subset, parse_subset, subset_mask, subset_name, subsets_of

subsets = st.sampled_from(SUBSETS)


def test_tensors_order_the_modalities_as_the_field_does():
    assert MODALITIES == ("flair", "t1ce", "t1", "t2")


def test_the_15_subsets_come_in_the_order_that_tables_print():
    printed = (
        "T2; T1ce; T1; FLAIR; T1ce+T2; T1ce+T1; FLAIR+T1; T1+T2; FLAIR+T2; FLAIR+T1ce; FLAIR+T1ce+T1; FLAIR+T1+T2; "
        "FLAIR+T1ce+T2; T1ce+T1+T2; FLAIR+T1ce+T1+T2"
    )
    assert "; ".join(subset_name(subset) for subset in SUBSETS) == printed


def test_the_subsets_are_all_non_empty_ones_once_each():
    every = {chosen for size in range(1, 5) for chosen in itertools.combinations(MODALITIES, size)}
    assert len(SUBSETS) == 15
    assert set(SUBSETS) == every


@given(
    subset=subsets,
    separator=st.sampled_from(["+", ",", " + ", ", ", "+,"]),
    shuffle=st.randoms(use_true_random=False),
    upper=st.booleans(),
)
def test_any_spelling_and_order_reads_as_the_same_subset(subset, separator, shuffle, upper):
    names = list(subset)
    shuffle.shuffle(names)
    text = separator.join(names)
    assert parse_subset(text.upper() if upper else text) == subset
    assert parse_subset(names) == subset
    assert parse_subset(names + names) == subset


@given(subset=subsets)
def test_what_is_printed_can_be_read_back(subset):
    assert parse_subset(subset_name(subset)) == subset
    assert parse_subset(subset_name(subset, ", ")) == subset


def test_all_stands_for_the_four():
    assert parse_subset("all") == parse_subset(" ALL ") == MODALITIES


@pytest.mark.parametrize("text", ["t3", "flair+t1c", "all+t1", "t1 t2", ["flair", "seg"], ["t1+t2"]])
def test_an_unknown_name_is_refused_and_the_valid_ones_are_listed(text):
    with pytest.raises(InputError, match="unknown modality") as error:
        parse_subset(text)
    assert all(name in str(error.value) for name in MODALITIES)
    assert "'+'" in str(error.value)


def test_the_unknown_name_itself_is_in_the_message():
    with pytest.raises(InputError, match="'t1c'"):
        parse_subset("flair+T1C")


@pytest.mark.parametrize("nothing", ["", "  ", "+", ",,", [], ()])
def test_an_empty_subset_is_refused_and_the_valid_names_are_listed(nothing):
    with pytest.raises(InputError, match="empty") as error:
        parse_subset(nothing)
    assert all(name in str(error.value) for name in MODALITIES)


@given(text=st.text(max_size=30))
def test_arbitrary_text_is_either_a_subset_or_an_input_error(text):
    try:
        assert parse_subset(text) in SUBSETS
    except InputError as error:
        assert "flair" in str(error)  # noqa: PT017 (both outcomes are right)


@pytest.mark.parametrize("subset", SUBSETS, ids=subset_name)
def test_a_mask_stands_for_its_subset_and_back(subset):
    mask = subset_mask(subset)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [name in subset for name in MODALITIES]
    assert mask_subset(mask) == subset
    assert mask_subset(mask.tolist()) == subset


def test_a_mask_without_any_modality_is_refused():
    with pytest.raises(InputError, match="empty"):
        mask_subset([False] * 4)


@pytest.mark.parametrize("mask", [[True], [True] * 5, []])
def test_a_mask_of_another_length_is_refused(mask):
    with pytest.raises(InputError, match="has 4 entries"):
        mask_subset(mask)


@given(available=subsets)
def test_subsets_of_a_case_are_those_it_can_serve_in_table_order(available):
    found = subsets_of(available)
    assert len(found) == 2 ** len(available) - 1
    assert all(set(subset) <= set(available) for subset in found)
    assert list(found) == [subset for subset in SUBSETS if subset in found]


def test_a_complete_case_serves_all_15_subsets():
    assert subsets_of(MODALITIES) == SUBSETS
