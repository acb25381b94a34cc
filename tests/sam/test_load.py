"""Loading a SAM: by official names, from a file, and what is refused. Nothing here reaches the network."""

import hashlib
import json
import math
import os
import pickle
import types

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from smml.errors import InputError
from smml.sam import Prompts, SquareFit, TinyConfig, answer, build_tiny, encode, load_sam, read_tiny, save_tiny
from smml.sam import load as loading
from smml.sam.download import RemoteFile
from smml.sam.torchvision_gap import import_segment_anything

SMALL = TinyConfig(image_size=32, width=16, depth=1, heads=2, channels=16, decoder_mlp=16)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return build_tiny(SMALL).eval()


@pytest.fixture
def tiny_file(tiny, tmp_path):
    path = tmp_path / "some.safetensors"
    save_tiny(tiny, path, SMALL, {"commit": "abc", "seed": 3})
    return path


@pytest.fixture(scope="module")
def vit_b() -> dict[str, torch.Tensor]:
    """Weights of ViT-B under the official names. They are windows of one storage, so a file of them is small."""
    with torch.device("meta"):
        shapes = import_segment_anything().sam_model_registry["vit_b"]().state_dict()
    numbers = 0.02 * torch.randn(4_000_000, generator=torch.Generator().manual_seed(0))
    return {
        name: numbers[997 * i : 997 * i + value.numel()].view(value.shape)
        for i, (name, value) in enumerate(shapes.items())
    }


def official(monkeypatch, path) -> None:
    """Let a file pass for Meta's ViT-B."""
    file = RemoteFile(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(loading.OFFICIAL, "vit_b", file)


# ------------------------------------------------------------------------------------------------- official checkpoints


def test_vit_b_works_on_a_slice_from_a_checkpoint_with_the_official_names(vit_b, monkeypatch, tmp_path):
    path = tmp_path / "cache" / "sam_vit_b.pth"
    path.parent.mkdir()
    torch.save(vit_b, path)
    official(monkeypatch, path)
    sam = load_sam("vit_b", cache=path.parent, progress=False)
    assert all(torch.equal(value, vit_b[name]) for name, value in sam.state_dict().items())
    assert sam.answers_three
    assert len(sam.image_encoder.blocks) == 12
    assert not sam.training
    assert not any(parameter.requires_grad for parameter in sam.parameters())
    # Two of the twelve blocks show that all fits together; with all of them a slice takes half a minute.
    sam.image_encoder.blocks = sam.image_encoder.blocks[:2]
    embeddings = encode(sam, torch.rand(1, 60, 80) + 1)
    box = torch.tensor([[10.0, 20, 30, 50]])
    masks, _ = answer(sam, embeddings, Prompts(box), SquareFit.of(sam, (60, 80)), multimask=False)
    assert embeddings.shape == (1, 256, 64, 64)
    assert masks.shape == (1, 1, 60, 80)
    assert bool(torch.isfinite(masks).all())


def test_a_checkpoint_of_another_size_under_an_official_name_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "sam_vit_b.pth"
    blocks = {f"image_encoder.blocks.{i}.norm1.weight": torch.ones(1024) for i in range(24)}
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 2, 2, 1024), **blocks}, path)
    official(monkeypatch, path)
    with pytest.raises(InputError, match=r"sam_vit_b\.pth: not vit_b; expected the weights .* found vit_l"):
        load_sam("vit_b", cache=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("mask_decoder.iou_token.weight"), r"1 weights do not fit .* expected \(1, 256\), found None"),
        (lambda w: w.update(extra=torch.ones(2)), r"\(for example extra: expected None, found \(2,\)\)"),
        (lambda w: w.update({7: torch.ones(2)}), r"\(for example 7: expected None, found \(2,\)\)"),
        (
            lambda w: w.update({"mask_decoder.iou_token.weight": torch.ones(1, 9)}),
            r"expected \(1, 256\), found \(1, 9\)",
        ),
        (
            lambda w: w.update({"mask_decoder.iou_token.weight": torch.full((1, 256), torch.nan)}),
            r"holds NaN or infinite weights; copy or download it again",
        ),
    ],
    ids=["missing", "unknown", "a number", "shape", "NaN"],
)
def test_weights_that_do_not_fit_are_named(vit_b, monkeypatch, tmp_path, edit, message):
    path, weights = tmp_path / "edited.pth", dict(vit_b)
    edit(weights)
    # Reading the file is tested elsewhere, and 150 tensors take their time.
    path.touch()
    monkeypatch.setattr(loading.torch, "load", lambda *_, **__: weights)
    with pytest.raises(InputError, match=rf"edited\.pth: .*{message}"):
        load_sam(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"a": torch.ones(2), "b": torch.ones(2)}, r"2 entries \(a, b \.\.\.\)"),
        ({"model": {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}}, r"1 entries \(model \.\.\.\)"),
        ({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}, r"1 entries"),
        ({"image_encoder.pos_embed": torch.zeros(3)}, r"1 entries"),
        ([1, 2], r"a list"),
        (torch.ones(3), r"a Tensor"),
    ],
    ids=["other names", "nested", "no blocks", "a flat embedding", "a list", "a tensor"],
)
def test_what_is_no_sam_is_refused(tmp_path, content, found):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError, match=rf"other\.pth: not a SAM; expected .*\(vit_b, vit_l, vit_h\).* found {found}"):
        load_sam(tmp_path / "other.pth")


def named(weights: dict, prefix: str) -> dict:
    return {prefix + name: value for name, value in weights.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"model": w, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "epoch": 3},
        lambda w: {"state_dict": w},
        lambda w: {"epoch": 1, "model_state_dict": named(w, "module.")},
        lambda w: {"model": {"state_dict": named(w, "sam.")}},
        lambda w: named(w, "module."),
        lambda w: named(w, "_orig_mod.module."),
        lambda w: {"weights": w, "step": 7},
    ],
    ids=["model", "state_dict", "model_state_dict and module", "twice", "module", "compiled", "weights"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_inside_a_checkpoint_of_a_training_or_under_a_prefix_are_found(
    vit_b, monkeypatch, tmp_path, wrap, suffix
):
    """As fine-tuning leaves them: beside the optimiser, and named by DataParallel or torch.compile."""
    path = tmp_path / f"tuned{suffix}"
    path.touch()
    # Reading and filling are tested elsewhere, and 90 million numbers take their time.
    monkeypatch.setattr(loading, "read_tensors", lambda *_, **__: ({}, wrap(vit_b)))
    filled = {}
    monkeypatch.setattr(loading, "_fill", lambda sam, weights, _: filled.update(weights) or sam.to_empty(device="cpu"))
    sam = load_sam(path)
    assert filled.keys() == vit_b.keys()
    assert all(filled[name] is value for name, value in vit_b.items())
    assert sam.answers_three


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("write", [torch.save, lambda c, p: p.write_bytes(pickle.dumps(c, 2))], ids=["torch", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ""])
def test_code_in_a_checkpoint_is_never_run(tmp_path, write, suffix):
    path, mark = tmp_path / f"evil{suffix}", tmp_path / "run"
    write({"image_encoder.pos_embed": Evil(mark)}, path)
    with pytest.raises(InputError, match=r"evil.*: refused, because it holds pickled code .* only plain weights are"):
        load_sam(path)
    assert not mark.exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1], ids=lambda kept: f"{kept} kept")
def test_a_truncated_checkpoint_is_refused(tmp_path, kept):
    path = tmp_path / "cut.pth"
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 4, 4, 768)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept == 0.5 else kept])
    with pytest.raises(InputError, match=r"cut\.pth: (damaged or truncated SAM checkpoint|refused, because it holds)"):
        load_sam(path)
    assert os.listdir(tmp_path) == ["cut.pth"]


def test_a_tampered_official_checkpoint_is_refused_by_its_hash(monkeypatch, tmp_path):
    path = tmp_path / "sam_vit_b.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    official(monkeypatch, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"expected \d+ bytes with SHA-256 \w{64}, found \d+ bytes .* delete it"):
        load_sam("vit_b", cache=tmp_path, progress=False)
    assert path.read_bytes() == content


def test_offline_the_message_says_where_from_and_where_to(monkeypatch, tmp_path):
    from smml.sam import download

    monkeypatch.setattr(download, "ADDRESS", "http://127.0.0.1:9/")
    monkeypatch.setattr(download, "time", types.SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(InputError) as caught:
        load_sam("vit_l", cache=tmp_path, progress=False)
    assert "http://127.0.0.1:9/sam_vit_l_0b3195.pth cannot be downloaded" in str(caught.value)
    assert str(tmp_path / "sam_vit_l_0b3195.pth") in str(caught.value)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize("name", ["vit_x", "nowhere/sam.pth", "."])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(InputError, match=rf"^{name}: no such SAM; give tiny, vit_b, vit_l, vit_h, or a \.pth or"):
        load_sam(name)


def test_an_unknown_device_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(InputError, match="abacus"):
        load_sam(tmp_path / "missing.pth", device="abacus")


# ----------------------------------------------------------------------------------------------------------- tiny files


def test_a_tiny_sam_comes_back_with_its_facts(tiny, tiny_file):
    sam, facts = read_tiny(tiny_file)
    assert facts == {"format": "smml-sam-1", "size": SMALL.to_dict(), "commit": "abc", "seed": 3}
    for name, value in tiny.state_dict().items():
        assert torch.equal(sam.state_dict()[name], value.half().float())
    # The normalisation is in no file.
    assert torch.equal(sam.pixel_mean, tiny.pixel_mean)
    assert torch.equal(sam.pixel_std, tiny.pixel_std)
    assert sam.takes_rough_mask


@pytest.mark.parametrize(("facts", "expected"), [({}, False), ({"multimask": True}, True)])
def test_a_file_says_whether_its_three_masks_were_trained(tiny, tmp_path, facts, expected):
    save_tiny(tiny, tmp_path / "sam.safetensors", SMALL, facts)
    assert load_sam(tmp_path / "sam.safetensors").answers_three is expected


def test_a_loaded_sam_is_frozen_and_segments_as_the_one_that_was_saved(tiny, tiny_file):
    sam = load_sam(tiny_file)
    assert not sam.training
    assert not any(parameter.requires_grad for parameter in sam.parameters())
    slices, box = torch.rand(1, 20, 30) + 1, torch.tensor([[3.0, 4, 12, 20]])
    ours, theirs = (
        answer(model, encode(model, slices), Prompts(box), SquareFit.of(model, (20, 30)), multimask=False)[0]
        for model in (sam, tiny)
    )
    assert torch.allclose(ours, theirs, atol=0.02)


def test_loading_draws_no_random_numbers(tiny_file):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_sam(tiny_file)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kept", [0, 4, 200, -1], ids=lambda kept: f"{kept} kept")
def test_a_truncated_tiny_sam_is_refused(tiny_file, kept):
    tiny_file.write_bytes(tiny_file.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"some\.safetensors: damaged or truncated SAM weights .* install them again"):
        load_sam(tiny_file)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (None, r"not a SAM of this project \(smml-sam-1 expected, found None\)"),
        ({"format": "smml-sam-9", "size": {}}, r"found 'smml-sam-9'"),
        ({"format": "smml-sam-1"}, r"not a SAM of this project"),
        ([], r"not a SAM of this project"),
        ({"format": "smml-sam-1", "size": SMALL.to_dict() | {"wings": 2}}, r"unknown setting wings"),
        ({"format": "smml-sam-1", "size": SMALL.to_dict() | {"width": -1}}, r"width must be a positive whole number"),
        ({"format": "smml-sam-1", "size": SMALL.to_dict() | {"width": 24}}, r"weights do not fit a SAM of that size"),
        # Would take terabytes if they were built before they are looked at.
        ({"format": "smml-sam-1", "size": SMALL.to_dict() | {"width": 2**20}}, r"width must be at most 4096"),
        (
            {"format": "smml-sam-1", "size": SMALL.to_dict() | {"decoder_mlp": 2**14}},
            r"weights do not fit a SAM of that",
        ),
    ],
)
def test_a_file_of_something_else_is_refused(tiny, tmp_path, described, message):
    path = tmp_path / "other.safetensors"
    save_file(
        {name: value.contiguous() for name, value in tiny.state_dict().items()},
        path,
        metadata=None if described is None else {"smml": json.dumps(described)},
    )
    with pytest.raises(InputError, match=rf"other\.safetensors: .*{message}"):
        load_sam(path)


# What a damaged or forged file may hold in place of a number.
ODD = st.one_of(
    st.sampled_from(
        [-1, 0, 1, 2, 3, 7, 16, 48, 64, 1000, 10**9, 2**63, 10**400, 0.5, 2.0, math.nan, math.inf, -math.inf]
    ),
    st.sampled_from([None, True, False, "", "16", [], [16], {}, {"a": 1}]),
)


@pytest.mark.filterwarnings("error")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(sorted(SMALL.to_dict())), ODD, min_size=1, max_size=3))
def test_any_value_of_any_setting_is_refused_or_loads_but_never_ends_in_a_traceback(tiny, tmp_path, changes):
    path = tmp_path / "edited.safetensors"
    described = {"format": "smml-sam-1", "size": SMALL.to_dict() | changes}
    weights = {name: value.contiguous() for name, value in tiny.state_dict().items()}
    save_file(weights, path, metadata={"smml": json.dumps(described)})
    try:
        loaded = read_tiny(path)[0]
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017 (both outcomes are right)
    else:
        assert loaded.state_dict().keys() == weights.keys()


def test_a_tiny_sam_whose_weights_are_no_tensors_is_refused(tmp_path):
    path = tmp_path / "start.pt"
    torch.save({"format": loading.FORMAT, "size": TinyConfig().to_dict(), "weights": {"a": 3}}, path)
    with pytest.raises(InputError, match="not a SAM of this project"):
        read_tiny(path)


def test_metadata_that_is_no_json_is_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors", metadata={"smml": "{"})
    with pytest.raises(InputError, match=r"other\.safetensors: damaged"):
        load_sam(tmp_path / "other.safetensors")


def test_a_full_disk_leaves_the_old_file_as_it_was(tiny, tiny_file, monkeypatch):
    def fail(_, path, **__):
        path.write_bytes(b"half of it")
        raise SafetensorError("No space left on device")

    before = tiny_file.read_bytes()
    monkeypatch.setattr(loading, "save_file", fail)
    with pytest.raises(InputError, match=r"some\.safetensors: writing failed .*No space left .* is unchanged"):
        save_tiny(tiny, tiny_file, SMALL, {})
    assert tiny_file.read_bytes() == before
    assert os.listdir(tiny_file.parent) == [tiny_file.name]
