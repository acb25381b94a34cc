"""How long SAM's priors take: a 96^3 volume, four modalities, three regions, cold and with the embeddings cached.

    python scripts/measure_prior.py [--sam tiny] [--planes axial] [--everywhere]

The goal on two CPU cores with the tiny SAM is 25 s cold and 3 s cached. The volume is noise in a ball, because the
time depends on the number of slices that are prompted and not on what they show; that number is printed too.
"""

import argparse
import time

import torch

from smml.data.labels import REGIONS, scheme_for_classes
from smml.sam import SAMPrior, build_tiny, coarse_prompts, load_sam
from smml.sam.prior import PLANES

EDGE = 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sam", default="tiny", help="a name or file for load_sam, or 'untrained' for random weights")
    parser.add_argument("--planes", nargs="+", default=["axial"], choices=list(PLANES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="that compute")
    parser.add_argument("--everywhere", action="store_true", help="the worst case: every region in every slice")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.sam == "untrained":
        sam = build_tiny().eval().requires_grad_(False).to(arguments.device)
    else:
        sam = load_sam(arguments.sam, device=arguments.device)

    image, probabilities = volume(arguments.everywhere)
    mask = torch.ones(1, 4, dtype=torch.bool)
    prior = SAMPrior(sam, planes=arguments.planes)
    members = scheme_for_classes(probabilities.shape[1]).regions
    coarse = {region: probabilities[0, list(members[region])].sum(dim=0) for region in REGIONS}
    asked = [(plane, region) for plane in arguments.planes for region in REGIONS]
    counts = [len(coarse_prompts(coarse[region].movedim(PLANES[plane], 0))) for plane, region in asked]
    print(f"{EDGE}^3, 4 modalities, {'+'.join(arguments.planes)}: {4 * sum(counts)} prompts (per region {counts})")
    for name in ("cold", "cached", "cached"):
        started, busy = time.perf_counter(), time.process_time()
        prior(image.to(arguments.device), probabilities.to(arguments.device), mask)
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        # On a machine with other work the first figure says little without the second.
        print(f"{name:7} {seconds:6.2f} s ({busy:.2f} s of processor time)")
    print(f"{len(prior.cache)} embeddings, {prior.cache.bytes / 2**20:.0f} MiB")


def volume(everywhere: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Image [1, 4, 96, 96, 96] and probabilities [1, 4, 96, 96, 96] of nested balls, a large tumour at 2 mm."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(EDGE))] * 3, indexing="ij"))
    brain = (grid - (EDGE - 1) / 2).square().sum(dim=0) < 44**2
    image = torch.randn(1, 4, *brain.shape) * brain
    centre = torch.tensor([55.0, 50.0, 48.0])
    distance = (grid - centre[:, None, None, None])[: 2 if everywhere else 3].square().sum(dim=0).sqrt()
    labels = torch.zeros(brain.shape, dtype=torch.long)
    for radius, label in ((24, 2), (16, 1), (14, 3)):
        labels[distance < radius] = label
    return image, torch.nn.functional.one_hot(labels, 4).movedim(-1, 0)[None].float()


if __name__ == "__main__":
    main()
