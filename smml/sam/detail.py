"""Fine detail for the tiny SAM's masks: features at the masks' own resolution, beside the coarse image embedding.

SAM's mask decoder sees an image only through embeddings of whole patches. A large model learns, over hundreds of
thousands of steps, to store in each what its pixels look like; one of 0.9 M parameters does not, and blurs a rim that
is thinner than a patch. So a few convolutions look at the pixels once an image, and a few more merge what they found
with the decoder's own features before SAM's filters make masks of them. HQ-SAM (Ke et al., NeurIPS 2023) and SAM 2
(Ravi et al., 2024) hand fine features to the mask decoder for the same reason; the official SAM models do without.

What an image has of it travels as further channels of its embedding, so it is cached and repeated with it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Mask pixels along the edge of a patch: SAM's decoder doubles the resolution of the embeddings twice.
MASK_PIXELS = 4


class FineDetail(nn.Module):
    """Fine features of an image, and their way into the masks.

    A box says how bright "bright" is: the features are normalised by their mean and spread inside it, as instance norm
    does over a whole image. Without a box the whole image stands for it.

    Args:
        patch_size: edge of a patch in pixels, a multiple of 4.
        channels: fine features a mask pixel; the first is its mean brightness.
        mask_channels: features a mask pixel in SAM's decoder, an eighth of its embeddings.
        hidden: width of the convolutions.
    """

    def __init__(self, patch_size: int, channels: int, mask_channels: int, hidden: int = 16) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride = patch_size // MASK_PIXELS
        self.look = nn.Sequential(
            nn.Conv2d(3, hidden, stride + 1 + stride % 2, stride=stride, padding=(stride + 1) // 2),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, channels - 1, 3, padding=2, dilation=2),
        )
        self.merge = nn.Sequential(
            nn.Conv2d(mask_channels + channels + 1, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, mask_channels, 1),
        )

    @property
    def packed(self) -> int:
        """Channels that an embedding has on top of SAM's own."""
        return self.channels * MASK_PIXELS**2

    def see(self, images: Tensor) -> Tensor:
        """Fine features of images, packed patch by patch.

        Args:
            images: what SAM's image encoder sees, [S, 3, size, size].

        Returns:
            [S, 16 * channels, h, w], h and w those of the embeddings.
        """
        brightness = F.avg_pool2d(images.mean(dim=1, keepdim=True), self.stride)
        return F.pixel_unshuffle(torch.cat([brightness, self.look(images)], dim=1), MASK_PIXELS)

    def add(self, features: Tensor, packed: Tensor, box: Tensor | None) -> Tensor:
        """The decoder's features with the fine ones merged in.

        Args:
            features: SAM's own, [P, mask_channels, 4 h, 4 w].
            packed: of :meth:`see`, one a prompt, [P, 16 * channels, h, w].
            box: share of each mask pixel that is in the prompt's box, in [0, 1], [P, 1, 4 h, 4 w]; None without boxes.

        Returns:
            As ``features``.
        """
        fine = F.pixel_shuffle(packed, MASK_PIXELS)
        inside = torch.ones_like(fine[:, :1]) if box is None else box
        count = inside.sum(dim=(2, 3), keepdim=True).clamp(min=1e-3)
        mean = (fine * inside).sum(dim=(2, 3), keepdim=True) / count
        variance = ((fine - mean).square() * inside).sum(dim=(2, 3), keepdim=True) / count
        # Outside the box, where it is of little interest, the image may be any number of spreads away.
        fine = ((fine - mean) * (variance + 1e-4).rsqrt()).clamp(-5, 5)
        return features + self.merge(torch.cat([features, fine, inside], dim=1))
