"""The transformers keep space and modality apart, and attend to what is present only."""

import pytest
import torch

from smml.models import Student
from smml.models.transformer import InterModalTransformer, IntraModalTransformer, interpolate_position

CHANNELS, MODALITIES, WIDTH, HEADS, MLP, DEPTH, GRID = 6, 4, 16, 4, 32, 2, 3
SIZES = {"width": WIDTH, "heads": HEADS, "mlp_width": MLP, "depth": DEPTH, "token_grid": GRID, "dropout": 0.0}
CELLS = GRID**3
BATCH = 2
ALL = torch.ones(BATCH, MODALITIES, dtype=torch.bool)
MIXED = torch.tensor([[True, False, True, True], [False, True, False, False]])


class ScrambledTransformer(InterModalTransformer):
    """What the public code of this family does: tokens (M * S, D) viewed as (S, M * D), with no axis for modality."""

    def forward(self, features, mask):
        batch, grid = features[0].shape[0], features[0].shape[2:]
        cells, modalities = grid.numel(), len(features)
        embedded = [
            (self.embed[m](f) * mask[:, m].view(batch, 1, 1, 1, 1)).flatten(2).transpose(1, 2)
            for m, f in enumerate(features)
        ]
        tokens = torch.cat(embedded, dim=1)
        position = interpolate_position(self.position, grid).flatten(2).transpose(1, 2)
        position = position.reshape(1, modalities * cells, self.width)
        keys = mask.repeat_interleave(cells, dim=1)
        for layer in self.layers:
            tokens = layer(tokens, position, keys)
        scrambled = tokens.view(batch, cells, modalities * self.width)  # the fault
        return self.decode(scrambled.transpose(1, 2).reshape(batch, modalities * self.width, *grid))


def make(kind=InterModalTransformer, seed: int = 0) -> InterModalTransformer:
    torch.manual_seed(seed)
    block = kind(CHANNELS, MODALITIES, **SIZES).eval()
    with torch.no_grad():
        block.position.normal_()  # as learned: large enough to matter
    return block


def maps(seed: int = 1, grid=(GRID,) * 3) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, CHANNELS, *grid, generator=random) for _ in range(MODALITIES)]


def permute_cells(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Rearrange the cells of [B, C, x, y, z]."""
    return x.flatten(2)[:, :, order].view_as(x)


def permutation_error(block: InterModalTransformer, mask: torch.Tensor) -> float:
    """Largest difference between permuting before the block (positions too) and permuting after it."""
    order = torch.randperm(CELLS, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        after = permute_cells(block(maps(), mask), order)
        block.position.copy_(permute_cells(block.position, order))
        before = block([permute_cells(f, order) for f in maps()], mask)
    return float((before - after).abs().max())


@pytest.mark.parametrize("mask", [ALL, MIXED], ids=["all present", "mixed masks"])
def test_permuting_cells_and_their_positions_permutes_the_output_alike(mask):
    assert permutation_error(make(), mask) < 1e-5


@pytest.mark.parametrize("mask", [ALL, MIXED], ids=["all present", "mixed masks"])
def test_a_block_that_views_modality_as_space_fails_that_property(mask):
    assert permutation_error(make(ScrambledTransformer), mask) > 0.1


def test_the_intra_modal_block_keeps_space_too():
    torch.manual_seed(0)
    block = IntraModalTransformer(CHANNELS, **SIZES).eval()
    order = torch.randperm(CELLS, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        block.position.normal_()
        after = permute_cells(block(maps()[0]), order)
        block.position.copy_(permute_cells(block.position, order))
        torch.testing.assert_close(block(permute_cells(maps()[0], order)), after, atol=1e-5, rtol=1e-5)


def test_moving_the_cells_but_not_their_positions_is_seen():
    """Position embeddings are used: without them any order of cells would do."""
    block, order = make(), torch.arange(CELLS).flip(0)
    with torch.no_grad():
        after = permute_cells(block(maps(), ALL), order)
        before = block([permute_cells(f, order) for f in maps()], ALL)
    assert not torch.allclose(before, after, atol=1e-2)


def test_every_present_modality_is_seen_at_every_cell():
    block, features = make(), maps()
    with torch.no_grad():
        before = block(features, ALL)
        for m in range(MODALITIES):
            changed = list(features)
            changed[m] = features[m].clone()
            changed[m][:, :, 0, 0, 0] += 5.0
            moved = (block(changed, ALL) - before).abs().amax(dim=(0, 1))
            assert float(moved.min()) > 0  # attention reaches from one cell of one modality to all the others


@pytest.mark.parametrize("what", ["features", "positions", "embedding", "all of it NaN"])
def test_nothing_about_a_missing_modality_changes_the_output(what):
    block, features = make(), maps()
    missing = 1
    mask = torch.ones(BATCH, MODALITIES, dtype=torch.bool)
    mask[:, missing] = False
    with torch.no_grad():
        before = block(features, mask)
        if what == "features":
            features[missing] = 1e3 * torch.randn_like(features[missing])
        elif what == "positions":
            block.position[missing].normal_(std=30)
        elif what == "embedding":
            block.embed[missing].weight.normal_(std=30)
        else:
            features[missing] = torch.full_like(features[missing], torch.nan)
        assert torch.equal(block(features, mask), before)


def test_a_map_that_is_none_equals_one_that_is_masked():
    block, features = make(), maps()
    mask = torch.tensor([[True, False, True, False]] * BATCH)
    with torch.no_grad():
        masked = block(features, mask)
        absent = block([features[0], None, features[2], None], mask)
    assert torch.equal(masked, absent)


def test_masked_modalities_are_masked_sample_by_sample():
    block, features = make(), maps()
    with torch.no_grad():
        together = block(features, MIXED)
        for i in range(BATCH):
            alone = block([f[i : i + 1] for f in features], MIXED[i : i + 1])
            torch.testing.assert_close(together[i], alone[0], atol=1e-5, rtol=1e-5)


def test_a_missing_modality_gets_no_gradient():
    block = make()
    features = [f.requires_grad_() for f in maps()]
    mask = torch.tensor([[True, True, False, True]] * BATCH)
    block(features, mask).square().sum().backward()
    assert float(features[2].grad.abs().max()) == 0
    assert float(features[0].grad.abs().max()) > 0


def test_positions_of_the_learned_grid_are_used_as_they_are():
    position = torch.randn(MODALITIES, WIDTH, GRID, GRID, GRID)
    assert interpolate_position(position, (GRID,) * 3) is position


@pytest.mark.parametrize("grid", [(2, 2, 2), (4, 4, 4), (2, 3, 5), (1, 1, 1), (8, 8, 8)])
def test_positions_are_interpolated_to_any_other_grid(grid):
    ramp = torch.linspace(-1, 1, GRID).view(1, 1, GRID, 1, 1).expand(1, WIDTH, GRID, GRID, GRID)
    resampled = interpolate_position(ramp, grid)
    assert resampled.shape == (1, WIDTH, *grid)
    # A ramp along x stays one along x alone, in the same direction and range.
    assert bool((resampled.diff(dim=2) >= 0).all())
    torch.testing.assert_close(resampled, resampled[:, :1, :, :1, :1].expand_as(resampled))
    assert float(resampled.abs().max()) <= 1
    torch.testing.assert_close(resampled.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("grid", [(2, 2, 2), (2, 3, 4)])
def test_both_blocks_work_on_other_grids_than_the_learned_one(grid):
    torch.manual_seed(0)
    intra = IntraModalTransformer(CHANNELS, **SIZES).eval()
    with torch.no_grad():
        assert make()(maps(grid=grid), MIXED).shape == (BATCH, MODALITIES * CHANNELS, *grid)
        assert intra(maps(grid=grid)[0]).shape == (BATCH, CHANNELS, *grid)


@pytest.mark.parametrize("shape", [(32, 32, 32), (48, 48, 48), (32, 48, 64)])
def test_any_patch_of_at_least_32_and_divisible_by_16_is_segmented(shape):
    torch.manual_seed(0)
    student = Student("tiny").eval()
    mask = torch.tensor([[True, False, False, True]])
    with torch.no_grad():
        output = student(torch.randn(1, 4, *shape), mask)
    assert output.logits.shape == (1, 4, *shape)
    assert output.bottleneck.shape == (1, 4 * 32, *(edge // 16 for edge in shape))
    assert bool(output.logits.isfinite().all())
