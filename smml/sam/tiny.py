"""The tiny SAM: segment-anything's own modules at a size that two CPU cores can train and run, and fine detail.

SAM's smallest official model takes tens of seconds a slice on such a machine. The tiny one sees a slice as a square of
144 pixels, cut into 18 x 18 patches; its masks have 72 x 72 pixels, to which a few convolutions of our own bring what
the patches are too coarse for (:mod:`smml.sam.detail`). It knows nothing but the simulated images and
shapes that it was trained on (``smml.sam.training.train``).
"""

import math
from dataclasses import asdict, dataclass, fields

import torch
from torch import nn

from smml.errors import InputError
from smml.sam.detail import MASK_PIXELS, FineDetail
from smml.sam.torchvision_gap import Sam, import_segment_anything

# Far beyond what anyone calls tiny: a damaged or forged file is refused before anything of that size is built.
_MOST = {
    "image_size": 4096,
    "patch_size": 256,
    "width": 4096,
    "depth": 64,
    "heads": 64,
    "channels": 4096,
    "decoder_mlp": 16384,
    "detail": 64,
}


@dataclass(frozen=True)
class TinyConfig:
    """Size of a tiny SAM.

    Attributes:
        image_size: edge of the square input in pixels.
        patch_size: edge of a patch in pixels; a mask pixel is a quarter of it.
        width: channels of the image encoder.
        depth: its transformer blocks.
        heads: its attention heads, and those of the mask decoder.
        channels: of the image embeddings and of the mask decoder; divisible by 8.
        decoder_mlp: hidden width of the mask decoder's blocks.
        detail: fine features a mask pixel (``smml.sam.detail``); 0 does without, as the official models do.

    Raises:
        InputError: numbers that are not positive and whole, are beyond all reason, or do not fit together.
    """

    image_size: int = 144
    patch_size: int = 8
    width: int = 96
    depth: int = 4
    heads: int = 4
    channels: int = 96
    decoder_mlp: int = 192
    detail: int = 8

    def __post_init__(self) -> None:
        for field in fields(self):
            value, most = getattr(self, field.name), _MOST[field.name]
            # Not isinstance: True is an int.
            if type(value) is not int or value < (field.name != "detail"):
                raise InputError(f"tiny SAM: {field.name} must be a positive whole number, found {value!r}")
            if value > most:
                raise InputError(f"tiny SAM: {field.name} must be at most {most}, found {value}")
        if self.detail == 1:
            raise InputError("tiny SAM: detail must be 0 or at least 2, because the first is the brightness; found 1")
        if self.detail and self.patch_size % MASK_PIXELS:
            raise InputError(f"tiny SAM: detail needs a patch_size divisible by {MASK_PIXELS}, found {self.patch_size}")
        # The decoder's attention halves the channels before it shares them out among the heads.
        fits = (
            self.image_size % self.patch_size == 0
            and self.width % self.heads == 0
            and self.channels % 8 == 0
            and self.channels % (2 * self.heads) == 0
        )
        if not fits:
            raise InputError(
                "tiny SAM: image_size must be divisible by patch_size, width by heads, channels by 8 and by 2 * heads; "
                f"found {self.image_size}, {self.patch_size}, {self.width}, {self.heads} and {self.channels}"
            )

    @property
    def grid(self) -> int:
        """Patches along an edge, which is also the edge of the image embeddings."""
        return self.image_size // self.patch_size

    def to_dict(self) -> dict[str, int]:
        """As plain values, for a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "TinyConfig":
        """Inverse of :meth:`to_dict`.

        Args:
            values: by field.

        Raises:
            InputError: names are unknown or values do not fit together.
        """
        unknown = sorted(map(str, set(values) - {field.name for field in fields(cls)}))
        if unknown:
            raise InputError(f"tiny SAM: unknown setting {', '.join(unknown)}")
        # Files from before there was fine detail do not name it.
        return cls(**{"detail": 0, **values})


def build_tiny(config: TinyConfig | None = None) -> Sam:
    """A ``segment_anything.modeling.Sam`` of that size with random weights, in training mode.

    ``sam.takes_rough_mask`` tells ``answer`` to give a box not only by its corners but also, filled, as SAM's third
    kind of prompt: a rough mask to be refined. The official models do without; a small one learns faster with it.

    Every attention of the encoder is global and without relative positions: with 18 x 18 patches windows would save
    nothing. The normalisation of the input is SAM's own.

    Args:
        config: its size; None is that of the one that ships.
    """
    config = config or TinyConfig()
    modeling = import_segment_anything().modeling
    side = (config.grid, config.grid)
    sam = modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            out_chans=config.channels,
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=config.channels,
            image_embedding_size=side,
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=16,
        ),
        mask_decoder=modeling.MaskDecoder(
            transformer_dim=config.channels,
            transformer=modeling.TwoWayTransformer(
                depth=2, embedding_dim=config.channels, num_heads=config.heads, mlp_dim=config.decoder_mlp
            ),
            iou_head_hidden_dim=config.channels,
        ),
    )
    if config.detail:
        sam.detail = FineDetail(config.patch_size, config.detail, config.channels // 8)
    _initialise(sam)
    sam.takes_rough_mask = True
    return sam


def _initialise(sam: Sam) -> None:
    """Start values that train in thousands of steps instead of SAM's hundreds of thousands.

    segment-anything leaves the position embedding of the encoder at 0 and the rest at PyTorch's defaults. The random
    frequencies that tell prompts where they are (a buffer, never trained) all have about one period across the image;
    spread over a range, they tell neighbouring voxels apart from the start.
    """
    frequencies = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    frequencies *= torch.logspace(math.log10(0.5), math.log10(5.0), frequencies.shape[1])
    nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)
    for module in sam.image_encoder.blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=1 / math.sqrt(module.in_features) / 1.5)
            nn.init.zeros_(module.bias)
