"""Make docs/viewer.gif, the README's moving picture of the viewer: one simulated case, modalities switched off and on.

    python scripts/make_viewer_picture.py

Every frame is the viewer's own picture (planes, legend, scores) under its four checks; no browser is needed.
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from smml.data import read_case, simulate_cohort
from smml.inference import Predictor
from smml.modalities import DISPLAY_NAMES, MODALITIES
from smml.viewer import viewer_picture
from smml.viewer.render import font

TARGET = Path(__file__).resolve().parent.parent / "docs" / "viewer.gif"
MOST_BYTES = 1_500_000
# What is given in turn: one sequence leaves at a time and T1ce comes back alone, so that the eye sees what each brings.
STEPS = ("all", "flair+t1ce+t1", "flair+t1", "flair", "t1", "t1ce", "t1ce+flair", "all")


def with_checks(picture: np.ndarray, given: tuple[str, ...]) -> Image.Image:
    """The picture with the four checks above it."""
    page = Image.new("RGB", (picture.shape[1], picture.shape[0] + 34), "white")
    page.paste(Image.fromarray(picture), (0, 34))
    draw = ImageDraw.Draw(page)
    draw.text((10, 9), "The model is given", font=font(15), fill=(25, 25, 25))
    x = 165
    for name in MODALITIES:
        on = name in given
        ink = (25, 25, 25) if on else (160, 160, 160)
        draw.rectangle((x, 10, x + 14, 24), outline=ink, width=1, fill=(0, 114, 178) if on else (255, 255, 255))
        if on:
            draw.line((x + 3, 17, x + 6, 21, x + 12, 13), fill="white", width=2)
        draw.text((x + 20, 9), DISPLAY_NAMES[name], font=font(15), fill=ink)
        x += 90
    draw.text((page.width - 10, 9), "simulated case", font=font(13), fill=(120, 120, 120), anchor="ra")
    return page


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        # Finer than the weights' 3 mm: the case is resampled to them and the result back to its own grid.
        files = simulate_cohort(folder, 6, spacing=1.5, seed=3, workers=1)
        case = max(map(read_case, files), key=lambda case: int((case.label == 3).sum()))
    predictor = Predictor.from_checkpoint("tiny")
    encoding = predictor.encode(case)
    frames = []
    for step in STEPS:
        result = predictor.segment(encoding, step)
        picture = viewer_picture(case, result, shown="flair", size=260)
        frames.append(with_checks(picture, result.subset))
    # One palette for all frames, or the grey of the brain would flicker; the colours must be in it.
    strip = Image.new("RGB", (frames[0].width, sum(frame.height for frame in frames)))
    for number, frame in enumerate(frames):
        strip.paste(frame, (0, number * frames[0].height))
    palette = strip.quantize(128, method=Image.Quantize.MEDIANCUT)
    small = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    TARGET.parent.mkdir(exist_ok=True)
    small[0].save(TARGET, save_all=True, append_images=small[1:], duration=1600, loop=0, optimize=True)
    size = TARGET.stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{TARGET} has {size} bytes, more than {MOST_BYTES}; draw it smaller")
    print(TARGET, size // 1000, "kB")


if __name__ == "__main__":
    main()
