"""Whatever lies in a file or in the environment: a result or one sentence, soon, in little memory, nothing by halves.

``make fuzz`` tries many more than the suite does.
"""

import json
import os
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from odd_files import JSON_VALUES, bounded, damaged, mha_files, nifti_files, score_tables, zipped
from safetensors.torch import save_file

from smml import cli
from smml.data import read_case
from smml.data.layouts import CaseFiles, ImageSource
from smml.evaluation import Scores, compare, format_comparison
from smml.evaluation.kept import KeptRows
from smml.sam import TinyConfig, build_tiny, load_sam, save_tiny
from smml.training import TrainingConfig
from smml_kernels import dispatch

few = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="no alarms there"),
    pytest.mark.filterwarnings("ignore"),
]


def leftovers(folder) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


def read(path, content: bytes, *, as_label: bool) -> None:
    """An image of a case; or its label, beside an image that is right."""
    path.write_bytes(content)
    images = {"flair": ImageSource(path)}
    if as_label:
        import nibabel as nib

        good = path.with_name("good.nii")
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.diag([2.0, 2.0, 3.0, 1.0])), good)
        images = {"flair": ImageSource(good)}
    with bounded() as said:
        case = read_case(CaseFiles("x", "brats2021", images, path if as_label else None))
        assert all(np.isfinite(volume).all() and volume.dtype == np.float32 for volume in case.volumes.values())
        assert np.isfinite(case.affine).all()
        assert case.label is None or (case.label.dtype == np.uint8 and case.label.max() < 4)
    for sentence in said:
        assert str(path) in sentence


@few
@given(content=nifti_files(), packed=st.booleans(), as_label=st.booleans())
def test_any_nifti_file_is_read_or_told(tmp_path, content, packed, as_label):
    read(tmp_path / f"odd{'.nii.gz' if packed else '.nii'}", zipped(content) if packed else content, as_label=as_label)


@few
@given(data=st.data(), content=nifti_files())
def test_any_damage_to_a_packed_file_is_told(tmp_path, data, content):
    read(tmp_path / "odd.nii.gz", data.draw(damaged(zipped(content))), as_label=data.draw(st.booleans()))


@few
@given(content=mha_files(), as_label=st.booleans())
def test_any_mha_file_is_read_or_told(tmp_path, content, as_label):
    pytest.importorskip("SimpleITK")
    read(tmp_path / "odd.mha", content, as_label=as_label)


@pytest.fixture(scope="module")
def sam_file(tmp_path_factory) -> bytes:
    size = TinyConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2, channels=16, decoder_mlp=16)
    path = tmp_path_factory.mktemp("sam") / "sam.safetensors"
    torch.manual_seed(0)
    save_tiny(build_tiny(size), path, size, {"training": "none"})
    return path.read_bytes()


@few
@given(data=st.data())
def test_any_damage_to_a_sam_is_told_or_loads(tmp_path, sam_file, data):
    path = tmp_path / "sam.safetensors"
    path.write_bytes(data.draw(damaged(sam_file)))
    with bounded() as said:
        load_sam(path)
    assert all(str(path) in sentence for sentence in said)


# As large as a position embedding of SAM's, of one stored number.
LARGE = torch.zeros(1).expand(1, 64, 64, 768)
TENSORS = st.sampled_from([torch.zeros(2), LARGE, torch.zeros(1, 2, 2, 1024), torch.zeros(())])
NAMES = st.sampled_from(["model", "state_dict", "weights", "format", "module.image_encoder.pos_embed", "a", "size", ""])
CONTENTS = st.recursive(
    st.one_of(TENSORS, JSON_VALUES),
    lambda inner: st.dictionaries(st.one_of(NAMES, st.integers(0, 3)), inner, max_size=4),
    max_leaves=6,
)


@few
@given(content=CONTENTS)
def test_a_checkpoint_of_anything_else_is_no_sam(tmp_path, content):
    path = tmp_path / "sam.pth"
    torch.save(content, path)
    with bounded() as said:
        load_sam(path)
    assert len(said) == 1
    assert str(path) in said[0]


@few
@given(tensors=st.dictionaries(NAMES, st.integers(0, 3), max_size=3), facts=JSON_VALUES)
def test_tensors_of_anything_else_are_no_sam(tmp_path, tensors, facts):
    path = tmp_path / "sam.safetensors"
    save_file({name: torch.zeros(size) for name, size in tensors.items()}, path, {"smml": json.dumps(facts)})
    with bounded() as said:
        load_sam(path)
    assert len(said) == 1
    assert str(path) in said[0]


@few
@example(content=b"case,subset,region,dice\na,t1,WT,0.5,1,2\n")
@given(content=score_tables())
def test_any_table_of_scores_is_compared_or_told(tmp_path, content):
    good, odd = tmp_path / "good.csv", tmp_path / "odd.csv"
    rows = [
        f"{case},{subset},{region},0.5"
        for case in "abc"
        for subset in ("flair", "t1+t2")
        for region in ("WT", "TC", "ET")
    ]
    good.write_text("\n".join(["case,subset,region,dice", *rows]), encoding="utf-8")
    odd.write_bytes(content)
    with bounded():
        text = format_comparison(compare({"good": Scores.read(good), "odd": Scores.read(odd)}))
        assert "| odd |" in text


@few
@given(content=st.one_of(JSON_VALUES.map(lambda value: json.dumps(value).encode()), st.binary(max_size=40)))
def test_any_configuration_is_taken_or_told(tmp_path, monkeypatch, capsys, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    monkeypatch.setattr(
        sys, "argv", ["smml", "train", str(tmp_path / "no data"), str(tmp_path / "run"), "--config", str(path)]
    )
    with pytest.raises(SystemExit) as stop, bounded():
        cli.main()
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1, err
    assert err.startswith("smml: ")
    assert out == ""
    assert not (tmp_path / "run").exists()


@few
@given(values=st.dictionaries(st.sampled_from(sorted(TrainingConfig().to_dict())), JSON_VALUES, min_size=1, max_size=3))
def test_any_value_of_an_option_is_taken_or_told(tmp_path, values):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with bounded():
        from smml.config_command import read_options

        TrainingConfig.from_dict(read_options(path, frozenset(TrainingConfig().to_dict())))


@few
@given(note=st.binary(max_size=60), table=score_tables())
def test_any_files_in_the_place_of_an_evaluation_are_told_or_replaced(tmp_path, note, table):
    for name, content in (("evaluation.json", note), ("scores.csv", table)):
        (tmp_path / name).write_bytes(content)
    names = [[("a", "T1", "student", region) for region in ("WT", "TC", "ET")]]
    with bounded() as said:
        kept = KeptRows(tmp_path, {"model": "m"}, names)
        kept.begin()
        assert kept.done == 0
    if said:
        assert (tmp_path / "scores.csv").read_bytes() == table, "nothing of somebody else's is lost"
    assert leftovers(tmp_path) == []


@few
@given(word=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12))
def test_any_word_in_the_environment_for_the_kernels_is_taken_or_told(monkeypatch, word):
    import smml_kernels

    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, word)
    try:
        smml_kernels.dice_ce_loss(torch.zeros(1, 4, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.long))
    except ValueError as error:
        assert dispatch.ENVIRONMENT_VARIABLE in str(error)  # noqa: PT017 (both outcomes are right)
