"""Prediction: encode once, fuse any subset, and give the result back on the case's own grid."""

import copy
import dataclasses

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from smml.data import LAYOUTS, Case, find_cases, prepare, read_case, scheme_for_classes, simulate_cohort
from smml.data.reading import read_image
from smml.errors import InputError
from smml.inference import Cancelled, Predictor
from smml.inference.windows import plan_windows
from smml.modalities import MODALITIES, SUBSETS, subset_mask
from smml.models import SMML
from smml.models.checkpoint import Checkpoint, save_checkpoint
from smml.models.decision import ExpectedDice, labelling


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SMML("tiny").eval()


def make_case(shape=(40, 37, 33), spacing=(3.0, 3.0, 3.0), modalities=MODALITIES, seed=0, axes="RAS") -> Case:
    """Random images inside a box of 'brain', with the voxel axes in the given directions."""
    random = np.random.default_rng(seed)
    volumes = {}
    for name in MODALITIES:
        volume = np.zeros(shape, np.float32)
        volume[3:-3, 3:-3, 3:-3] = random.integers(50, 500, [n - 6 for n in shape])
        if name in modalities:
            volumes[name] = volume
    label = np.zeros(shape, np.uint8)
    label[10:20, 10:20, 10:20] = 2
    label[13:17, 13:17, 13:17] = 3
    affine = np.diag([*spacing, 1.0])
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    affine = affine @ nib.orientations.inv_ornt_aff(turn, shape)
    volumes = {name: np.ascontiguousarray(nib.apply_orientation(v, turn)) for name, v in volumes.items()}
    return Case(
        id="made",
        volumes=volumes,
        label=np.ascontiguousarray(nib.apply_orientation(label, turn)),
        affine=affine,
        layout="brats2021",
    )


def directly(model, case, subset):
    """Each branch's probabilities [2, K, X, Y, Z] from the networks called as in training, on the whole volume."""
    image = prepare(case).image[None]
    with torch.inference_mode():
        return torch.stack(
            [student(image, subset_mask(subset)[None]).logits.softmax(1)[0] for student in model.branches]
        )


def assert_close(array, tensor):
    torch.testing.assert_close(torch.from_numpy(array), tensor, rtol=0, atol=1e-5)


def test_cases_are_prepared_by_the_version_of_the_model(model):
    case = make_case((48, 32, 32))
    older, newer = (Predictor(model, (1.5, 1.5, 1.5), window=48, preprocessing=version) for version in (2, 3))
    assert torch.equal(older.encode(case).prepared.image, prepare(case, (1.5, 1.5, 1.5), preprocessing=2).image)
    assert torch.equal(newer.encode(case).prepared.image, prepare(case, (1.5, 1.5, 1.5), preprocessing=3).image)
    with pytest.raises(InputError, match="preprocessing must be one of the versions"):
        Predictor(model, None, preprocessing=99)


def test_every_subset_gives_the_numbers_of_the_model_called_directly(model):
    case = make_case((48, 32, 32))
    predictor = Predictor(model, case.spacing, window=48)
    encoding = predictor.encode(case)
    assert len(encoding.plan.places) == 1, "one window, so that there is something to compare with"
    for subset in SUBSETS:
        result, direct = predictor.segment(encoding, subset, branches=True), directly(model, case, subset)
        assert_close(result.branches, direct)
        assert_close(result.probabilities, direct.mean(0))
        assert_close(result.uncertainty, (direct[0] - direct[1]).abs().sum(0) / 2)


@pytest.mark.parametrize("keep_bytes", [0, 2**30])
def test_all_subsets_in_one_go_give_the_numbers_of_one_by_one(model, keep_bytes, monkeypatch):
    # Several subsets share a pass and the last pass is not full; groups of subsets are smaller than all of them.
    monkeypatch.setattr("smml.inference.predictor.BLEND_BYTES", 7 * 2 * 4 * 4 * 48 * 32 * 32)
    predictor = Predictor(model, None, window=32, keep_bytes=keep_bytes)
    encoding = predictor.encode(make_case((48, 32, 30)))
    assert encoding.plan.together == 4
    assert (encoding.windows is None) == (keep_bytes == 0)
    assert len(encoding.plan.places) == 2
    results = list(predictor.segment_all(encoding, branches=True))
    assert [result.subset for result in results] == list(SUBSETS)
    for result in results:
        alone = predictor.segment(encoding, result.subset, branches=True)
        np.testing.assert_allclose(result.branches, alone.branches, rtol=0, atol=1e-5)
        np.testing.assert_allclose(result.probabilities, alone.probabilities, rtol=0, atol=1e-5)
    assert len({result.probabilities.tobytes() for result in results}) == len(SUBSETS)


@pytest.mark.parametrize(("edge", "together"), [(32, 4), (48, 4), (64, 2), (96, 1), (128, 1)])
def test_large_windows_go_through_the_network_in_smaller_batches(edge, together):
    plan = plan_windows((2 * edge, 2 * edge, edge), edge, 0.0)
    assert [len(places) for places in plan.batches] == [together] * (4 // together)


@pytest.mark.parametrize("subset", [None, "flair+t2"])
def test_one_call_gives_the_bits_of_encoding_and_segmenting(model, subset):
    predictor, case = Predictor(model, None, window=32), make_case((48, 32, 30))
    one, two = predictor.predict(case, subset), predictor.segment(predictor.encode(case), subset)
    assert one.subset == two.subset == (MODALITIES if subset is None else ("flair", "t2"))
    assert np.array_equal(one.probabilities, two.probabilities)
    with pytest.raises(InputError, match=r"asks for T1ce, but only FLAIR was read"):
        predictor.predict(make_case((32, 32, 32), modalities=("flair",)), "t1ce")


@pytest.mark.parametrize("patch", [32, 48, 64])
def test_the_window_is_as_large_as_the_patch_with_and_without_a_checkpoint(model, tmp_path, patch):
    save_checkpoint(Checkpoint(model.config, model.state_dict(), (3.0, 3.0, 3.0), patch), tmp_path / "checkpoint.pt")
    assert Predictor.from_checkpoint(tmp_path).window == Predictor(model, None, patch=patch).window == patch
    assert Predictor.from_checkpoint(tmp_path, window=32).window == 32


@pytest.mark.parametrize("name", ["checkpoint.pt", "weights.safetensors"])
def test_weights_keep_the_window_that_was_chosen_for_them(model, tmp_path, name):
    chosen = Checkpoint(model.config, model.state_dict(), (3.0, 3.0, 3.0), 48, window=64)
    save_checkpoint(chosen, tmp_path / name)
    assert Predictor.from_checkpoint(tmp_path / name).window == 64
    assert Predictor.from_checkpoint(tmp_path / name, window=32).window == 32


def test_encodings_that_are_not_kept_are_made_once_for_many_subsets(model, monkeypatch):
    predictor = Predictor(model, None, window=32, keep_bytes=0)
    encoding = predictor.encode(make_case((32, 32, 32)))
    encoded = []
    plain = predictor.model.encode
    monkeypatch.setattr(predictor.model, "encode", lambda *given: encoded.append(given) or plain(*given))
    assert len(list(predictor.segment_all(encoding, ["t1", "t2", "flair"]))) == 3
    assert len(encoded) == 1
    assert encoded[0][1].tolist() == subset_mask("flair+t1+t2").tolist(), "and T1ce, which nobody asked for, not at all"


def test_all_subsets_are_those_of_what_the_case_has_and_others_are_refused_at_once(model):
    predictor = Predictor(model, None, window=32)
    encoding = predictor.encode(make_case((32, 32, 32), modalities=("t1ce", "t2")))
    assert [result.subset for result in predictor.segment_all(encoding)] == [("t2",), ("t1ce",), ("t1ce", "t2")]
    with pytest.raises(InputError, match="asks for FLAIR"):
        predictor.segment_all(encoding, ["t2", "flair"])


def test_autocast_reaches_encoders_and_fusion_and_stays_close(model):
    case = make_case((32, 32, 32))
    plain, fast = (Predictor(model, None, window=32, precision=name) for name in ("float32", "bf16"))
    encoding = fast.encode(case)
    shares = encoding.windows[0][0]
    assert {share.dtype for level in shares.levels for share in level} == {torch.bfloat16}
    seen = []
    handle = model.branches[0].fusion_decoder.head.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    result = fast.segment(encoding, "flair+t2")
    handle.remove()
    assert seen == [torch.bfloat16]
    expected = plain.segment(plain.encode(case), "flair+t2").probabilities
    assert result.probabilities.dtype == np.float32
    difference = np.abs(result.probabilities - expected)
    assert 0 < difference.mean() < 0.02, "another precision, the same answer"
    with pytest.raises(InputError, match="float32, bf16"):
        Predictor(model, None, window=32, precision="fp8")


def test_probabilities_are_blended_to_a_distribution_and_labels_are_their_argmax(model):
    result = Predictor(model, None, window=32).segment(Predictor(model, None, window=32).encode(make_case()), "flair")
    assert result.probabilities.shape == (4, 40, 37, 33)
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)
    assert np.array_equal(result.labels, result.probabilities.argmax(0))
    assert result.labels.dtype == np.uint8


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (3.0, 3.0, 3.0)], ids=["own grid", "resampled"])
def test_with_a_rule_labels_are_what_it_makes_of_the_probabilities_and_nothing_else_changes(model, spacing):
    rule = ExpectedDice({"WT": 2.0, "TC": 0.3, "ET": 0.1})
    plain, other = (Predictor(model, spacing, window=32, decision=decision) for decision in (None, rule))
    encoding = plain.encode(make_case((30, 31, 28), spacing=(2.0, 2.0, 2.0), axes="LPS"))
    before, after = (one.segment(encoding, "flair+t2", branches=True) for one in (plain, other))

    def by_rule(probabilities):
        making = labelling(rule, plain.scheme, encoding.case.shape, voxel_ml=0.008)
        for k, probability in enumerate(probabilities):
            making.see(k, torch.from_numpy(probability))
        return making.labels()

    assert np.array_equal(after.probabilities, before.probabilities)
    assert np.array_equal(after.uncertainty, before.uncertainty)
    assert np.array_equal(after.labels, by_rule(before.probabilities))
    assert not np.array_equal(after.labels, before.labels)
    for number in (0, 1):
        assert np.array_equal(after.branch_labels[number], by_rule(before.branches[number]))
    # Kept scores of one are not those of the other; the argmax is named too, as `smml intervals` asks for it.
    assert (plain.facts()["decision"], other.facts()["decision"]) == (None, rule.to_dict())


def test_absence_is_weighed_only_from_subsets_that_show_the_region(model):
    least = dict.fromkeys(("WT", "TC", "ET"), 0.0)
    plain, other = (
        Predictor(model, None, window=32, decision=rule)
        for rule in (ExpectedDice(least), ExpectedDice(least, ("ET",), ("t1ce",)))
    )
    encoding = plain.encode(make_case())
    hidden, shown = ([one.segment(encoding, subset).labels for one in (plain, other)] for subset in ("flair", "t1ce"))
    assert (hidden[0] == 3).any()
    assert np.array_equal(*hidden)
    assert (shown[0] == 3).any()
    assert not (shown[1] == 3).any(), "an untrained model is sure of nothing"


def test_of_equally_likely_classes_the_first_is_the_label(model):
    undecided = copy.deepcopy(model)
    for branch in undecided.branches:
        for parameter in branch.fusion_decoder.head.parameters():
            parameter.data.zero_()
    predictor = Predictor(undecided, None, window=32)
    result = predictor.segment(predictor.encode(make_case()), "flair")
    assert len(np.unique(result.probabilities)) == 1
    assert not result.labels.any()
    assert not result.branch_labels.any()


def test_a_modality_that_is_not_asked_for_changes_no_bit(model):
    predictor = Predictor(model, None, window=32)
    case, other = make_case(), make_case(seed=0)
    other.volumes["t1ce"] *= 1000
    other.volumes["t1"][:] = np.nan
    results = [predictor.segment(predictor.encode(c), "flair+t2").probabilities for c in (case, other)]
    assert np.array_equal(results[0], results[1])


def test_a_case_that_lacks_sequences_equals_the_same_subset_of_the_whole_case(model):
    predictor = Predictor(model, None, window=32)
    partial = predictor.segment(predictor.encode(make_case(modalities=("t1ce", "t2"))))
    whole = predictor.segment(predictor.encode(make_case()), "t1ce+t2")
    assert partial.subset == ("t1ce", "t2")
    assert np.array_equal(partial.probabilities, whole.probabilities)


def test_encodings_that_are_too_large_to_keep_give_the_same_bits(model):
    case = make_case()
    kept, recomputed = Predictor(model, None, window=32), Predictor(model, None, window=32, keep_bytes=0)
    first, second = kept.encode(case), recomputed.encode(case)
    assert first.windows is not None
    assert second.windows is None
    for subset in ("t2", "all"):
        assert np.array_equal(
            kept.segment(first, subset).probabilities, recomputed.segment(second, subset).probabilities
        )


@pytest.mark.parametrize("axes", ["LPS", "RSP", "PIR", "SLA"])
def test_another_orientation_gives_the_same_segmentation_in_that_orientation(model, axes):
    predictor = Predictor(model, None, window=32)
    plain, turned = make_case(shape=(36, 40, 44)), make_case(shape=(36, 40, 44), axes=axes)
    assert "".join(turned.orientation) == axes
    expected = predictor.segment(predictor.encode(plain))
    result = predictor.segment(predictor.encode(turned))
    assert result.labels.shape == turned.shape
    back = nib.apply_orientation(result.labels, nib.io_orientation(turned.affine))
    assert np.array_equal(back, expected.labels)
    assert len(np.unique(expected.labels)) > 1, "an untrained network that says one thing everywhere proves nothing"


def test_a_case_of_another_spacing_comes_back_on_its_own_grid(model):
    case = make_case((70, 66, 62), spacing=(1.5, 1.5, 1.5))
    predictor = Predictor(model, (3.0, 3.0, 3.0), window=48)
    encoding = predictor.encode(case)
    assert encoding.prepared.geometry.shape == (35, 33, 31)
    result = predictor.segment(encoding)
    assert result.labels.shape == case.shape
    assert np.array_equal(result.affine, case.affine)
    assert np.array_equal(result.labels, result.probabilities.argmax(0)), "the argmax is taken on the case's own grid"


def test_a_volume_smaller_than_the_window_is_padded_and_cropped_back(model):
    result = Predictor(model, None, window=64).segment(Predictor(model, None, window=64).encode(make_case((20, 9, 33))))
    assert result.labels.shape == (20, 9, 33)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 130)] * 3), st.sampled_from([32, 48, 64, 96]), st.sampled_from([0.0, 0.25, 0.5]))
def test_windows_cover_every_voxel_and_padding_can_be_undone(shape, window, overlap):
    plan = plan_windows(shape, window, overlap)
    assert all(32 <= edge <= window and edge % 16 == 0 for edge in plan.window)
    image = torch.arange(float(np.prod(shape))).reshape(shape)
    padded = plan.pad(image)
    assert tuple(padded.shape) == plan.padded_shape
    assert torch.equal(plan.crop(padded), image)
    covered = torch.zeros(plan.padded_shape)
    for place in plan.places:
        assert tuple(s.stop - s.start for s in place) == plan.window
        covered[place] += 1
    assert bool((covered > 0).all())


def test_blending_weights_are_positive_and_highest_in_the_middle():
    importance = plan_windows((64, 64, 64), 32).importance
    assert bool((importance > 0).all())
    assert importance[16, 16, 16] == importance.max()


def test_a_modality_that_was_not_read_is_refused_by_name(model):
    predictor = Predictor(model, None, window=32)
    encoding = predictor.encode(make_case(modalities=("flair", "t2")))
    with pytest.raises(InputError, match=r"asks for T1ce, but only FLAIR, T2 was read"):
        predictor.segment(encoding, "flair+t1ce")
    with pytest.raises(InputError, match="no modality"):
        predictor.encode(dataclasses.replace(make_case(), volumes={}))


@pytest.mark.parametrize("window", [16, 40, 0])
def test_an_unusable_window_is_refused(model, window):
    with pytest.raises(InputError, match="window"):
        Predictor(model, None, window=window)


def test_labels_are_written_with_the_values_of_the_data_set_they_came_from(model, tmp_path):
    predictor = Predictor(model, None, window=32)
    case = make_case(shape=(33, 34, 35), axes="LPS")
    result = dataclasses.replace(predictor.segment(predictor.encode(case)), labels=case.label)
    for layout, et in (("brats2021", 4), ("brats2023", 3)):
        path = predictor.save(result, tmp_path / f"{layout}.nii.gz", layout=layout, probabilities=tmp_path / "p.nii.gz")
        image = nib.load(path)
        assert set(np.unique(image.dataobj)) == {0, 2, et}
        np.testing.assert_allclose(image.affine, case.affine, atol=1e-4)
    probabilities = nib.load(tmp_path / "p.nii.gz")
    assert probabilities.shape == (33, 34, 35, 4)
    with pytest.raises(InputError, match="5"):
        predictor.save(result, tmp_path / "x.nii.gz", layout="brats2015")


def test_labels_are_written_before_probabilities_and_never_to_the_same_file(model, tmp_path, monkeypatch):
    predictor = Predictor(model, None, window=32)
    result = predictor.segment(predictor.encode(make_case((32, 32, 32))))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"one\.nii: was named for the labels and for the probabilities"):
        predictor.save(result, "one.nii", probabilities=tmp_path / "one.nii")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"p\.mha"):
        predictor.save(result, tmp_path / "seg.nii", probabilities=tmp_path / "p.mha")
    assert [path.name for path in tmp_path.iterdir()] == ["seg.nii"], "what took long is not lost with it"


def test_the_mean_of_the_branches_is_taken_over_probabilities(model):
    """Public code averages logits, which is another number."""
    case = make_case((32, 32, 32))
    predictor = Predictor(model, None, window=32)
    result = predictor.segment(predictor.encode(case))
    image = prepare(case).image[None]
    with torch.inference_mode():
        logits = [student(image, subset_mask("all")[None]).logits[0] for student in model.branches]
    mean_of_logits = F.softmax((logits[0] + logits[1]) / 2, dim=0).numpy()
    assert np.abs(result.probabilities - mean_of_logits).max() > 1e-4


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (3.0, 3.0, 3.0)], ids=["own grid", "resampled"])
def test_temperatures_by_number_of_sequences_change_probabilities_and_doubt_and_no_label(model, spacing):
    """Those of one sequence and of three; two are left as they are."""
    temperatures = (2.0, 1.0, 0.5, 3.0)
    plain, tempered = (Predictor(model, spacing, window=32, temperatures=t) for t in (None, temperatures))
    encoding = plain.encode(make_case((30, 31, 28), spacing=(2.0, 2.0, 2.0), axes="LPS"))
    asked = {"t2": 2.0, "flair+t1": 1.0, "flair+t1+t2": 0.5}
    pairs = zip(*(one.segment_all(encoding, asked, branches=True) for one in (plain, tempered)), strict=True)
    for temperature, (before, after) in zip(asked.values(), pairs, strict=True):
        assert np.array_equal(after.labels, before.labels)
        assert np.array_equal(after.branch_labels, before.branch_labels)
        assert np.array_equal(after.branches, before.branches)
        if temperature == 1:
            assert np.array_equal(after.probabilities, before.probabilities)
            assert np.array_equal(after.uncertainty, before.uncertainty)
            continue
        by_hand = before.probabilities ** (1 / temperature)
        np.testing.assert_allclose(after.probabilities, by_hand / by_hand.sum(0), atol=1e-6)
        one, two = before.branches ** (1 / temperature)
        distance = np.abs(one / one.sum(0) - two / two.sum(0)).sum(0) / 2
        assert np.abs(distance - before.uncertainty).max() > 0.01
        # Interpolated branches have not quite the distance that is interpolated, and lie nearer to it than untempered.
        errors = [np.abs(found - distance).mean() for found in (after.uncertainty, before.uncertainty)]
        assert errors[0] < (1e-6 if spacing == (2.0, 2.0, 2.0) else errors[1] / 2)
        assert 0 <= after.uncertainty.min() <= after.uncertainty.max() <= 1


def test_a_predictor_with_other_temperatures_is_another_one(model):
    assert Predictor(model, None).facts()["temperatures"] is None
    assert Predictor(model, None, temperatures=(1, 2, 1, 1)).facts()["temperatures"] == [1.0, 2.0, 1.0, 1.0]
    with pytest.raises(InputError, match="temperatures must be 4 numbers"):
        Predictor(model, None, temperatures=(1.0, 2.0))


def test_a_simulated_case_from_disk_runs_through(model, small_cohort):
    case = read_case(find_cases(small_cohort)[0], "t1ce", label=False)
    predictor = Predictor(model, (6.0, 6.0, 6.0), window=32)
    assert predictor.segment(predictor.encode(case)).labels.shape == case.shape


def test_each_branch_is_kept_on_wish_and_their_mean_is_the_result(model):
    predictor = Predictor(model, (3.0, 3.0, 3.0), window=32)
    encoding = predictor.encode(make_case((36, 40, 44), spacing=(2.0, 2.0, 2.0), axes="LPS"))
    assert predictor.segment(encoding, "t2").branches is None
    result = predictor.segment(encoding, "t2", branches=True)
    assert result.branches.shape == (2, 4, *encoding.case.shape)
    np.testing.assert_allclose(result.branches.mean(axis=0), result.probabilities, atol=1e-6)
    assert np.abs(result.branches[0] - result.branches[1]).max() > 1e-3
    assert np.array_equal(result.branch_labels, result.branches.argmax(axis=1))
    assert len(np.unique(result.branch_labels)) > 1
    np.testing.assert_allclose(
        result.uncertainty, np.abs(result.branches[0] - result.branches[1]).sum(0) / 2, atol=1e-6
    )


@pytest.mark.parametrize("keep_bytes", [0, 2**30])
def test_work_is_given_up_between_batches_of_windows_and_says_how_far_it_is(model, keep_bytes):
    predictor = Predictor(model, None, window=32, overlap=0.0, keep_bytes=keep_bytes)
    case, steps = make_case((64, 64, 64)), []
    encoding = predictor.encode(case)
    predictor.segment(encoding, "t2", progress=lambda done, number: steps.append((done, number)))
    assert steps == [(1, 2), (2, 2)]
    steps.clear()
    with pytest.raises(Cancelled):
        predictor.segment(encoding, "t2", cancelled=lambda: bool(steps), progress=lambda *step: steps.append(step))
    assert steps == [(1, 2)], "one batch was done, the second never begun"
    if keep_bytes:
        with pytest.raises(Cancelled):
            predictor.encode(case, cancelled=lambda: True)


# Values on disk of background, NCR/NET, ED and ET; BraTS 2015 has NCR, ED, NET and ET instead.
ON_DISK = {
    "brats2015": (0, 1, 2, 3, 4),
    "brats2018": (0, 1, 2, 4),
    "brats2020": (0, 1, 2, 4),
    "brats2021": (0, 1, 2, 4),
    **dict.fromkeys(("brats2019", "fets2022", "tcga"), (0, 1, 2, 4)),
    "brats2023": (0, 1, 2, 3),
    **dict.fromkeys(("brats-men", "brats-ssa", "brats-ped-2023", "nnunet"), (0, 1, 2, 3)),
    # Of the classes that a network learns: the cavity and the cyst are none.
    **dict.fromkeys(("brats2024", "brats-met"), (0, 1, 2, 3)),
    "brats-ped": (0, 2, 4, 1),
    "msd": (0, 2, 1, 3),
    "simulated": (0, 1, 2, 4),
}


@pytest.mark.filterwarnings("ignore:.*on disk. counts as")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_saved_has_the_label_values_of_the_data_set_that_the_case_came_from(model, tmp_path, layout):
    files = simulate_cohort(tmp_path / "cohort", 1, spacing=6, seed=27, layout=layout, workers=1, progress=False)[0]
    case = read_case(files)
    if layout == "brats2015":
        torch.manual_seed(0)
        model = SMML("tiny", num_classes=5).eval()
    predictor = Predictor(model, None, window=32)
    result = predictor.segment(predictor.encode(case))
    suffix = ".mha" if layout == "brats2015" else ".nii.gz"
    written, _ = read_image(predictor.save(result, tmp_path / f"predicted{suffix}"))
    assert len(np.unique(result.labels)) > 1, "an untrained network that says one thing everywhere proves little"
    assert np.array_equal(written, np.array(ON_DISK[layout])[result.labels])
    # The truth, saved as if it had been predicted, is the data set's own file again; every class is in it.
    assert len(np.unique(case.label)) == len(ON_DISK[layout])
    truth = predictor.save(dataclasses.replace(result, labels=case.label), tmp_path / f"truth{suffix}")
    assert np.array_equal(read_image(truth)[0], read_image(files.label)[0])


def test_labels_and_probabilities_keep_the_transform_codes_of_the_case(model, tmp_path):
    image = nib.Nifti1Image(make_case((32, 32, 32)).volumes["t1"], None)
    image.set_qform(np.diag([-1.0, -1, 1, 1]), code=2)
    nib.save(image, tmp_path / "t1.nii")
    predictor = Predictor(model, None, window=32)
    outputs = [tmp_path / "labels.nii", tmp_path / "probabilities.nii"]
    predictor.save(predictor.predict(read_case(tmp_path / "t1.nii")), outputs[0], probabilities=outputs[1])
    for path in outputs:
        header = nib.load(path).header
        assert (int(header["qform_code"]), int(header["sform_code"])) == (2, 0)


def test_probabilities_say_which_class_each_volume_is_of_and_which_value_the_labels_have(model, tmp_path):
    """The labels of MSD have the values of two classes changed over; the volumes do not."""
    predictor = Predictor(model, None, window=32)
    result = predictor.predict(dataclasses.replace(make_case((32, 32, 32)), layout="msd"))
    outputs = [tmp_path / "labels.nii", tmp_path / "probabilities.nii"]
    for layout, values in ((None, (0, 2, 1, 3)), ("brats2021", (0, 1, 2, 4))):
        predictor.save(result, outputs[0], probabilities=outputs[1], layout=layout)
        image = nib.load(outputs[1])
        said = bytes(image.header["descrip"]).rstrip(b"\0").decode()
        names = ("background", "NCR/NET", "ED", "ET")
        assert said == "volumes: " + ", ".join(f"{v} {name}" for v, name in zip(values, names, strict=True))
        labels = np.asarray(nib.load(outputs[0]).dataobj)
        assert np.array_equal(np.asarray(values)[np.asarray(image.dataobj).argmax(-1)], labels)


def test_another_layout_is_written_where_it_is_named(model, tmp_path):
    predictor = Predictor(model, None, window=32)
    case = dataclasses.replace(make_case((32, 32, 32)), layout="msd")
    result = dataclasses.replace(predictor.segment(predictor.encode(case)), labels=case.label)
    assert set(np.unique(case.label)) == {0, 2, 3}
    for layout, values in ((None, {0, 1, 3}), ("brats2021", {0, 2, 4}), ("brats2023", {0, 2, 3})):
        stored, _ = read_image(predictor.save(result, tmp_path / "labels.nii.gz", layout=layout))
        assert set(np.unique(stored)) == values


def test_a_case_of_other_classes_than_the_model_s_is_refused_before_it_is_encoded(model):
    case = dataclasses.replace(make_case((32, 32, 32)), layout="brats2015")
    with pytest.raises(InputError, match=r"the model has 4 classes, but the layout brats2015 has 5; use a model"):
        Predictor(model, None, window=32).encode(case)


def test_a_number_of_classes_does_not_tell_the_values_on_disk():
    labels, scheme = np.full((4, 4, 4), 3, np.uint8), scheme_for_classes(4)
    for use in (scheme.encode, lambda stored: scheme.decode(stored, "a file")):
        with pytest.raises(InputError, match="take the scheme of the case"):
            use(labels)
