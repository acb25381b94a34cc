"""The tiny SAM's size and its start values."""

import pytest
import torch

from smml.errors import InputError
from smml.sam import TinyConfig, build_tiny


def test_the_size_goes_to_a_file_and_back():
    config = TinyConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2, channels=16, decoder_mlp=16)
    assert TinyConfig.from_dict(config.to_dict()) == config
    assert config.grid == 4
    with pytest.raises(InputError, match="unknown setting wings"):
        TinyConfig.from_dict({"wings": 2})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 0}, "width must be a positive whole number, found 0"),
        ({"depth": 2.0}, "depth must be a positive whole number, found 2.0"),
        ({"image_size": 100, "patch_size": 8}, "image_size must be divisible by patch_size"),
        ({"width": 98, "heads": 4}, "width by heads"),
        ({"channels": 92, "heads": 2}, "channels by 8"),
        ({"width": 96, "heads": 32, "channels": 96}, r"2 \* heads; found \d+, \d+, 96, 32 and 96"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        TinyConfig(**wrong)


def test_the_default_is_small_and_starts_where_it_can_learn():
    torch.manual_seed(0)
    sam = build_tiny()
    assert sam.takes_rough_mask
    # A few MB in half precision.
    assert sum(value.numel() for value in sam.state_dict().values()) < 1_500_000
    # Prompts a voxel apart are told apart, and so are patches, before the first step.
    frequencies = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.abs().mean(dim=0)
    assert float(frequencies[-8:].mean()) > 3 * float(frequencies[:8].mean())
    assert float(sam.image_encoder.pos_embed.detach().std()) > 0.01
