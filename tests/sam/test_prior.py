"""SAMPrior with fake SAMs that show what they were asked: alignment, missing modalities, the cache, no truth."""

import inspect
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from smml.data.labels import REGIONS, scheme_for_classes
from smml.errors import InputError
from smml.modalities import SUBSETS, subset_mask, subset_name
from smml.sam import calls
from smml.sam.cache import EmbeddingCache
from smml.sam.prior import PLANES, SAMPrior, best_answers
from smml.sam.prompts import PromptRules
from smml.sam.training.prompts import fill_box

SIZE = (20, 26, 15)
ALL = torch.ones(1, 4, dtype=torch.bool)


class BrightInBox(torch.nn.Module):
    """Segments the voxels above 0.5 whose centre lies in the box; its embeddings are the slices themselves."""

    device = torch.device("cpu")
    image_encoder = SimpleNamespace(img_size=144)

    def __init__(self, weight=0.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.encoded, self.answered = 0, 0

    def encode(self, slices, *, window):
        self.encoded += len(slices)
        return slices[:, None].clone()

    def answer(self, embeddings, prompts, fit):
        self.answered += len(embeddings)
        assert len(embeddings) == len(prompts)
        assert embeddings.shape[2:] == fit.shape
        return self.masks(embeddings, prompts.boxes, fit.shape), None

    def masks(self, embeddings, boxes, shape):
        rows, columns = torch.arange(shape[0]) + 0.5, torch.arange(shape[1]) + 0.5
        top, left, bottom, right = boxes.T[:, :, None]
        inside = ((rows > top) & (rows < bottom))[:, :, None] & ((columns > left) & (columns < right))[:, None, :]
        return torch.where(inside & (embeddings[:, 0] > 0.5), 30.0, -200.0)[:, None]


class BoxAlone(BrightInBox):
    """Fills the box, whatever the image shows."""

    def masks(self, embeddings, boxes, shape):
        return super().masks(torch.ones_like(embeddings), boxes, shape)


class RingDiscOrAll(BrightInBox):
    """Three answers to every box: its edge, two voxels wide, its inside, and both."""

    def masks(self, embeddings, boxes, shape):
        inset = boxes + torch.tensor([2.0, 2, -2, -2])
        whole, inside = (
            super(RingDiscOrAll, self).masks(torch.ones_like(embeddings), b, shape)[:, 0] > 0 for b in (boxes, inset)
        )
        return torch.where(torch.stack([whole & ~inside, inside, whole], dim=1), 30.0, -200.0)


@pytest.fixture(autouse=True)
def fakes_answer_for_themselves(monkeypatch):
    """A SAM of segment-anything is called as ever."""

    def encode(sam, *arguments, **options):
        return (sam.encode if isinstance(sam, BrightInBox) else partial(calls.encode, sam))(*arguments, **options)

    def answer(sam, *arguments):
        return (sam.answer if isinstance(sam, BrightInBox) else partial(calls.answer, sam))(*arguments)

    monkeypatch.setattr("smml.sam.prior.encode", encode)
    monkeypatch.setattr("smml.sam.prior.answer", answer)


def sphere(centre, radius, size=SIZE):
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in size], indexing="ij"))
    return (grid - torch.tensor(centre)[:, None, None, None]).square().sum(dim=0) <= radius**2


def certain(labels, classes=4):
    """Probabilities [B, K, ...] of labels [B, ...]."""
    return F.one_hot(labels, classes).movedim(-1, 1).float()


@pytest.fixture
def scene():
    """A bright sphere, off centre, in a dimmer brain, and a prediction of all three regions round it."""
    bright = sphere((8.0, 15.0, 6.0), 4)
    image = (0.2 * sphere((10.0, 13.0, 7.0), 11).float()).masked_fill(bright, 1.0).expand(1, 4, *SIZE).clone()
    return image, certain((3 * bright.long())[None]), bright


# ----------------------------------------------------------------------------------------------------------- alignment


@pytest.mark.parametrize("planes", [*([plane] for plane in PLANES), list(PLANES)], ids="+".join)
def test_a_sphere_comes_back_where_it_is(scene, planes):
    image, probabilities, bright = scene
    prior = SAMPrior(BrightInBox(), planes=planes, rules=PromptRules(minimum_area=1))(image, probabilities, ALL)
    assert prior.shape == (1, 4, 3, *SIZE)
    assert prior.dtype == torch.float32
    assert torch.equal(prior, bright.float().expand_as(prior))


@pytest.mark.parametrize("plane", PLANES)
def test_a_marked_voxel_comes_back_where_it_is(scene, plane):
    _, probabilities, bright = scene
    for voxel in (bright.nonzero()[0], bright.nonzero()[len(bright.nonzero()) // 3]):
        image = torch.zeros(1, 4, *SIZE)
        image[(0, 2, *voxel)] = 1
        prior = SAMPrior(BrightInBox(), planes=[plane], rules=PromptRules(minimum_area=1))(image, probabilities, ALL)
        assert prior[0, 2].nonzero().tolist() == [[r, *voxel.tolist()] for r in range(3)]
        assert not bool(prior[0, [0, 1, 3]].any())


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("dims", [(-1,), (-2,), (-3,), (-1, -3)])
def test_flips_of_image_and_prediction_flip_the_prior(scene, plane, dims):
    image, probabilities, _ = scene
    prior = SAMPrior(BoxAlone(), planes=[plane])
    flipped = prior(image.flip(dims), probabilities.flip(dims), ALL)
    assert torch.equal(flipped, prior(image, probabilities, ALL).flip(dims))


def test_a_crop_and_a_quarter_turn_carry_over(scene):
    image, probabilities, _ = scene
    prior = SAMPrior(BrightInBox(), rules=PromptRules(minimum_area=1))
    whole = prior(image, probabilities, ALL)
    crop = (..., slice(3, 17), slice(8, 24), slice(1, 12))
    assert torch.equal(prior(image[crop], probabilities[crop], ALL), whole[crop])
    turned = [x.rot90(1, (-3, -2)) for x in (image, probabilities, whole)]
    assert torch.equal(prior(turned[0], turned[1], ALL), turned[2])


def test_planes_are_averaged_and_a_slice_without_a_prompt_counts_as_nothing(scene):
    image, probabilities, _ = scene
    single = [SAMPrior(BoxAlone(), planes=[plane])(image, probabilities, ALL) for plane in PLANES]
    together = SAMPrior(BoxAlone(), planes=list(PLANES))(image, probabilities, ALL)
    assert torch.allclose(together, sum(single) / 3)
    assert 0 < float(together[together > 0].min()) < 0.4


@pytest.mark.parametrize("classes", [4, 5])
def test_each_region_is_prompted_where_it_is_predicted(classes):
    labels = torch.zeros(1, *SIZE, dtype=torch.long)
    labels[0, 2:18, 2:22, 2:12] = 2  # oedema
    labels[0, 5:15, 5:17, 4:10] = 1
    labels[0, 8:12, 8:13, 6:9] = classes - 1  # enhancing
    scheme = scheme_for_classes(classes)
    prior = SAMPrior(BoxAlone(), rules=PromptRules(margin=0))(
        torch.ones(1, 4, *SIZE), certain(labels, classes), torch.tensor([[True, False, True, False]])
    )
    for r, region in enumerate(REGIONS):
        assert torch.equal(prior[0, 0, r] > 0.5, scheme.region(labels[0], region))


def test_of_several_answers_the_one_that_the_branch_asked_for_is_taken():
    whole = torch.zeros(SIZE, dtype=torch.bool)
    whole[4:16, 6:18, 3:8] = True
    inside = torch.zeros(SIZE, dtype=torch.bool)
    inside[6:14, 8:16, 3:8] = True
    labels = torch.zeros(1, *SIZE, dtype=torch.long)
    labels[0, whole] = 3  # the rim
    labels[0, inside] = 1  # the necrosis in it
    prior = SAMPrior(RingDiscOrAll(), rules=PromptRules(margin=0))(torch.ones(1, 4, *SIZE), certain(labels), ALL)
    # WT and TC are the whole, ET is the rim, and all three have the same box.
    for r, expected in enumerate((whole, whole, whole & ~inside)):
        assert torch.equal(prior[0, :, r] > 0.5, expected.expand(4, *SIZE))


def test_another_piece_of_the_region_has_no_say_in_the_answer():
    small, large = torch.zeros(2, *SIZE, dtype=torch.bool)
    small[2:8, 2:8, 3:6] = True
    small[4:6, 4:6, 3:6] = False  # a rim
    large[9:19, 9:25, 3:6] = True
    prior = SAMPrior(RingDiscOrAll(), rules=PromptRules(margin=0))(
        torch.ones(1, 4, *SIZE), certain((3 * (small | large).long())[None]), ALL
    )
    assert torch.equal(prior[0, 0, 2] > 0.5, small | large)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_the_best_answer_is_that_of_the_highest_soft_iou(seed, count):
    random = torch.Generator().manual_seed(seed)
    answers, coarse = (torch.rand(*shape, generator=random) for shape in ((3, count, 7, 9), (3, 7, 9)))
    boxes = torch.tensor([[0.0, 0, 7, 9], [1, 2, 5, 6], [2.4, 0, 7, 4]])
    found = best_answers(answers, coarse, boxes)
    for p in range(3):
        wanted = coarse[p] * torch.from_numpy(fill_box(boxes[p].numpy(), (7, 9)))
        ious = [float(torch.minimum(a, wanted).sum() / torch.maximum(a, wanted).sum()) for a in answers[p]]
        assert torch.equal(found[p], answers[p, ious.index(max(ious))])


# ---------------------------------------------------------------------------------------- missing, empty, and no truth


@pytest.mark.parametrize("subset", SUBSETS, ids=subset_name)
def test_nan_in_missing_modalities_changes_no_bit(scene, subset):
    image, probabilities, _ = scene
    mask = subset_mask(subset)[None]
    poisoned = image.masked_fill(~mask[:, :, None, None, None], torch.nan)
    clean, dirty = (SAMPrior(BrightInBox())(x, probabilities, mask) for x in (image, poisoned))
    assert torch.equal(clean, dirty)
    assert not bool(dirty[~mask].any())
    assert bool(dirty[mask].flatten(1).any(dim=1).all())


def test_only_prompted_slices_of_present_modalities_are_encoded(scene):
    image, probabilities, bright = scene
    sam = BrightInBox()
    SAMPrior(sam, rules=PromptRules(minimum_area=1), cache=EmbeddingCache(0))(
        image, probabilities, subset_mask("t1+t2")[None]
    )
    assert sam.encoded == 2 * int(bright.any(dim=(0, 1)).sum())


def test_nothing_predicted_asks_sam_nothing(scene):
    image, _, _ = scene
    sam = BrightInBox()
    prior = SAMPrior(sam)(image, certain(torch.zeros(1, *SIZE, dtype=torch.long)), ALL)
    assert not bool(prior.any())
    assert sam.encoded == sam.answered == 0


def test_there_is_no_way_to_hand_a_truth_in():
    assert list(inspect.signature(SAMPrior.__call__).parameters) == ["self", "image", "probabilities", "mask"]
    assert not {"target", "label", "truth"} & set(inspect.signature(SAMPrior.__init__).parameters)


def test_no_gradient_reaches_the_prediction(scene):
    image, probabilities, _ = scene
    prior = SAMPrior(BrightInBox())(image.requires_grad_(), probabilities.requires_grad_(), ALL)
    assert not prior.requires_grad


def test_samples_of_a_batch_do_not_mix(scene):
    image, probabilities, _ = scene
    images = torch.cat([image, image.flip(2)])
    predictions = torch.cat([probabilities, probabilities.flip(2)])
    masks = torch.stack([subset_mask("flair+t2"), subset_mask("t1ce")])
    prior = SAMPrior(BrightInBox())
    together = prior(images, predictions, masks)
    for b in range(2):
        assert torch.equal(together[b : b + 1], prior(images[b : b + 1], predictions[b : b + 1], masks[b : b + 1]))


# --------------------------------------------------------------------------------------------------------------- cache


def test_slices_that_were_seen_are_not_encoded_again(scene):
    image, probabilities, _ = scene
    sam = BrightInBox()
    prior = SAMPrior(sam)
    first = prior(image, probabilities, ALL)
    encoded = sam.encoded
    # Another coarse prediction, other prompts, the same slices.
    other = prior(image, probabilities.roll(3, dims=2), subset_mask("t1")[None])
    assert not torch.equal(other[:, 2], first[:, 2])
    assert torch.equal(prior(image, probabilities, ALL), first)
    assert sam.encoded == encoded


def test_the_cache_is_keyed_by_content_and_weights(scene):
    image, probabilities, _ = scene
    cache = EmbeddingCache()
    first, second = BrightInBox(1.0), BrightInBox(2.0)
    SAMPrior(first, cache=cache)(image, probabilities, ALL)
    # The four sequences of the scene are equal: one set of embeddings serves them all.
    assert first.encoded == len(cache)
    SAMPrior(second, cache=cache)(image, probabilities, ALL)
    assert second.encoded == first.encoded
    changed = image.clone()
    changed[0, 1, 8, 15, 6] = 0.9
    before = first.encoded
    SAMPrior(first, cache=cache)(changed, probabilities, ALL)
    assert first.encoded == before + 1


def test_any_budget_gives_the_same_result(scene, tmp_path):
    image, probabilities, _ = scene
    caches = [EmbeddingCache(0), EmbeddingCache(3 * 4 * 26 * 20), EmbeddingCache(0, folder=tmp_path)]
    expected = SAMPrior(BrightInBox())(image, probabilities, ALL)
    for cache in caches:
        prior = SAMPrior(BrightInBox(), cache=cache)
        assert torch.equal(prior(image, probabilities, ALL), expected)
        assert torch.equal(prior(image, probabilities, ALL), expected)


def test_damage_in_the_folder_changes_nothing(scene, tmp_path):
    image, probabilities, _ = scene
    expected = SAMPrior(BrightInBox(), cache=EmbeddingCache(folder=tmp_path))(image, probabilities, ALL)
    paths = sorted(tmp_path.rglob("*.safetensors"))
    paths[0].write_bytes(paths[0].read_bytes()[:40])
    paths[1].write_bytes(paths[1].read_bytes()[:-1] + b"\x7f")
    sam = BrightInBox()
    assert torch.equal(SAMPrior(sam, cache=EmbeddingCache(folder=tmp_path))(image, probabilities, ALL), expected)
    assert sam.encoded == 2


def test_a_prior_of_inference_can_train_a_gate(scene):
    image, probabilities, _ = scene
    prior = SAMPrior(BrightInBox())
    with torch.inference_mode():
        prior(image, probabilities, ALL)
    weight = torch.ones((), requires_grad=True)
    (weight * prior(image, probabilities, ALL)).sum().backward()
    assert float(weight.grad) > 0


# -------------------------------------------------------------------------------------------------------------- a SAM


def test_a_sam_of_segment_anything_works_on_any_shape_and_cached():
    from smml.sam import TinyConfig, build_tiny

    torch.manual_seed(0)
    sam = build_tiny(TinyConfig(image_size=64, width=16, depth=1, heads=2, channels=16, decoder_mlp=16))
    prior = SAMPrior(sam.eval().requires_grad_(False), planes=list(PLANES))
    bright = sphere((8.0, 15.0, 6.0), 4)
    image = torch.rand(1, 4, *SIZE) + bright
    mask = subset_mask("t1ce+t2")[None]
    cold = prior(image, certain((3 * bright.long())[None]), mask)
    warm = prior(image, certain((3 * bright.long())[None]), mask)
    assert torch.equal(cold, warm)
    assert 0 <= float(cold.min()) < float(cold.max()) <= 1
    assert not bool(cold[~mask].any())


# -------------------------------------------------------------------------------------------------------------- errors


def test_bad_input_is_named(scene):
    image, probabilities, _ = scene
    prior = SAMPrior(BrightInBox())
    with pytest.raises(InputError, match=r"softmax"):
        prior(image, 5 * probabilities, ALL)
    with pytest.raises(InputError, match=r"softmax"):
        prior(image, probabilities * torch.nan, ALL)
    with pytest.raises(InputError, match=r"grid of the image"):
        prior(image, probabilities[..., :-1], ALL)
    with pytest.raises(InputError, match=r"mask bool"):
        prior(image, probabilities, ALL.float())
    with pytest.raises(InputError, match=r"NaN"):
        prior(image * torch.nan, probabilities, ALL)
    with pytest.raises(InputError, match=r"planes must be different ones of sagittal, coronal, axial"):
        SAMPrior(BrightInBox(), planes=["oblique"])
    with pytest.raises(InputError, match=r"regions"):
        SAMPrior(BrightInBox(), regions=["WT", "WT"])
