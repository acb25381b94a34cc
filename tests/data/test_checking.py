"""A bad case is told before the work, whichever of its files it is, and a good one costs no reading of its images."""

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from smml.data import checking, find_cases
from smml.data.checking import check_cases, find_problems
from smml.data.reading import read_image
from smml.errors import InputError
from smml.ranks import Ranks


@pytest.fixture
def cohort(small_cohort, tmp_path) -> Path:
    """Cases that a test may damage."""
    return Path(shutil.copytree(small_cohort, tmp_path / "data"))


def change(path: Path, voxels=lambda stored: stored, shift: float = 0.0) -> None:
    """Write an image anew, with other voxels or moved by some mm."""
    image = nib.load(path)
    affine = image.affine.copy()
    affine[0, 3] += shift
    stored = voxels(np.asarray(image.dataobj))
    nib.save(nib.Nifti1Image(stored, affine), path)


def bad_cohort(root: Path) -> list:
    """One foreign label value in the last case alone."""
    cases = find_cases(root)
    change(cases[-1].label, lambda stored: np.where(stored == 4, 7, stored).astype(np.uint8))
    return cases


def test_good_cases_pass_without_a_look_at_the_voxels_of_their_images(cohort, monkeypatch):
    monkeypatch.setattr(checking, "read_case", lambda *_: pytest.fail("an image was read"))
    check_cases(find_cases(cohort), progress=False)


def test_a_foreign_label_value_is_named_with_its_file(cohort):
    cases = bad_cohort(cohort)
    with pytest.raises(InputError, match=r"_seg\.nii\.gz: label value 7 is not one of 0, 1, 2, 4") as error:
        check_cases(cases, progress=False)
    assert str(cases[-1].label) in str(error.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def plain_and_cut(path: Path) -> None:
    """Gzip as it should be around an image that was cut short."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1000]))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "cut short"),
        (plain_and_cut, "cut short"),
        (lambda path: path.write_bytes(b""), "found 0 bytes"),
        (lambda path: path.unlink(), "cannot be opened"),
        (lambda path: change(path, lambda stored: stored[:-1]), "expected the shape"),
        (lambda path: change(path, shift=5.0), "expected the same place"),
        (lambda path: change(path, lambda stored: np.stack([stored, stored], -1)), "3 dimensions"),
    ],
)
def test_an_image_that_cannot_belong_to_its_case_is_told(cohort, damage, said):
    cases = find_cases(cohort)
    path = cases[1].images["t2"].path
    damage(path)
    problems = find_problems(cases, progress=False)
    assert list(problems) == [cases[1].id]
    assert str(path) in problems[cases[1].id]
    assert said in problems[cases[1].id]


def test_what_only_looks_odd_is_read_and_passes(cohort):
    """Padding behind the image, and a header in metres."""
    cases = find_cases(cohort)
    padded, metres = cases[0].images["t1"].path, cases[1].images["t1"].path
    padded.write_bytes(gzip.compress(gzip.decompress(padded.read_bytes()) + bytes(100)))
    image = nib.load(metres)
    changed = nib.Nifti1Image(np.asarray(image.dataobj), np.diag([1e-3, 1e-3, 1e-3, 1]) @ image.affine)
    changed.header.set_xyzt_units("meter")
    nib.save(changed, metres)
    assert find_problems(cases, progress=False) == {}


def test_4d_and_mha_files_and_cases_without_a_label_pass_too(small_cohort_2015, cohort, tmp_path):
    from smml.data import read_case, write_case

    case = read_case(find_cases(cohort)[0])
    write_case(type(case)("00001", case.volumes, case.label, case.affine, "msd"), tmp_path / "msd")
    find_cases(cohort)[1].label.unlink()
    for root in (small_cohort_2015, tmp_path / "msd", cohort):
        assert find_problems(find_cases(root), progress=False) == {}


def test_every_bad_case_is_listed_and_the_sentence_counts_the_others(cohort):
    cases = bad_cohort(cohort)
    cut(cases[0].images["flair"].path)
    assert list(find_problems(cases, progress=False)) == [cases[0].id, cases[2].id]
    with pytest.raises(InputError, match=r"_flair\.nii\.gz: .* \(1 more of 3 cases are bad"):
        check_cases(cases, progress=False)


def test_several_processes_share_out_the_look_and_all_of_them_learn_of_it(cohort, monkeypatch):
    cases = bad_cohort(cohort)

    def gather(self, found):
        assert found == {}, "rank 0 of 2 has looked at the first and the third case only"
        return [found, {1: "said by the other"}]

    monkeypatch.setattr(Ranks, "gather", gather)
    cases = [cases[0], cases[2], cases[1]]
    with pytest.raises(InputError, match="said by the other"):
        check_cases(cases, ranks=Ranks(0, 2), progress=False)


def test_a_header_that_scales_labels_is_named_as_the_reason(cohort):
    files = find_cases(cohort)[0]
    raw = bytearray(gzip.decompress(files.label.read_bytes()))
    raw[112:116] = np.float32(0.5).tobytes()  # scl_slope
    files.label.write_bytes(gzip.compress(bytes(raw)))
    assert "set scl_slope to 1" in find_problems([files], progress=False)[files.id]


def test_an_image_that_begins_inside_its_header_is_refused(tmp_path, cohort):
    """Read from there it would be shifted, and its end lost."""
    files = find_cases(cohort)[0]
    path = files.images["flair"].path
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[108:112] = np.float32(0).tobytes()
    path.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(InputError, match="found vox_offset 0, which lies inside it"):
        read_image(path)
    assert "vox_offset" in find_problems([files], progress=False)[files.id]
