# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 8. Your own case: from files to a result you can question
#
# **Question.** How do I segment images of my own, with whatever sequences there are, and when may I believe the result?
#
# After this notebook you can
# - name the files so that they are understood, and check a case before a network sees it;
# - run `smml predict`, and the same from Python, on two sequences out of four;
# - write labels, probabilities, a map of doubt, volumes and a picture;
# - say what orientation, thick slices and damaged files do, and what the result must not be used for.
#
# Minutes on two CPU cores. From [notebook 1](01_data.ipynb) it needs labels and axes, from
# [notebook 2](02_missing_modalities.ipynb) what a subset is.
#
# "Your own" folder is made here from a **simulated** case, so that the notebook runs anywhere. The shipped weights have
# seen simulated images only. On patients `"small"` is the better one; its [card](../smml/weights/small.md) says what it
# reached on five of them, and from which sequences. The notebook takes `"tiny"`, which is faster. Where you have
# labelled patients, train on them (`smml train --weights small`) and put your own checkpoint in the place of `tiny`.

# %%
import contextlib
import shutil
import sys

import nibabel as nib
import numpy as np
import pandas as pd
from IPython.display import display
from PIL import Image

from smml import cli, course
from smml.data import Case, read_case, write_case, write_segmentation
from smml.evaluation import dice
from smml.inference import Predictor
from smml.viewer import viewer_picture

own = course.build_folder().resolve() / "own"


def smml(line):
    """A command as in a terminal in the folder `own`, without the seconds that a new Python needs to start."""
    print(f"$ smml {line}")
    sys.argv = ["smml", *line.split()]
    with contextlib.chdir(own), contextlib.redirect_stderr(sys.stdout), contextlib.suppress(SystemExit):
        cli.main()


# %% [markdown]
# ## A folder of one's own
#
# What is expected of a case: one file per sequence, 3-D NIfTI (or .mha), all on **one grid** (registered and resampled
# to each other), and **skull-stripped**: outside the brain the voxels are exactly 0. The names tell the sequence:
# `*_flair.nii.gz`, `*_t1ce.nii.gz`, `*_t1.nii.gz`, `*_t2.nii.gz`, or those of any BraTS. Intensities may have any unit
# and scale, because each sequence is normalised by itself. Here: FLAIR and T1ce only, no label.

# %%
cohort = [read_case(file) for file in course.held_out_cohort(course.size(full=6, fast=2))]
source = max(cohort, key=lambda case: int((case.label == 3).sum()))
shutil.rmtree(own, ignore_errors=True)
two = {name: source.volumes[name] for name in ("flair", "t1ce")}
write_case(Case("00701", two, None, source.affine, "brats2021"), own / "data")
folder = own / "data" / "BraTS2021_00701"
print(*(path.relative_to(own) for path in sorted(folder.iterdir())), sep="\n")

# %% [markdown]
# ## Look first
#
# `smml info FOLDER` says what was recognised, beside versions, device and kernels (worth a glance before a bug report).

# %%
smml("info data")

# %% [markdown]
# No program can tell that FLAIR and T2 were swapped, or left and right. These numbers are for you to look at: the
# sequences found, the letters of the axes (where each one points to), voxels, the share of exact zeros (none means that
# the skull is still there) and the brain's volume, which an affine in the wrong unit betrays at once.


# %%
def facts(case):
    """What to look at before trusting a case; one row."""
    brain = np.any([volume != 0 for volume in case.volumes.values()], axis=0)
    return {
        "sequences": "+".join(case.modalities),
        "axes": "".join(case.orientation),
        "voxels": " x ".join(map(str, case.shape)),
        "spacing, mm": " x ".join(f"{edge:.3g}" for edge in case.spacing),
        "zeros": f"{1 - brain.mean():.0%}",
        "brain, ml": round(float(brain.sum() * np.prod(case.spacing) / 1000)),
    }


case = read_case(folder)
pd.DataFrame([facts(case)], index=[case.id]).transpose()

# %%
Image.fromarray(viewer_picture(case, overlay="none", shown="t1ce"))

# %% [markdown]
# Is it a head, upright, with R on the left of the axial picture? Then the affine is right, or at least not obviously
# wrong. Whether the patient's right really is on that side, only the scanner's own record knows.
#
# ## The command
#
# Everything that the folder has, then one sequence, as if the other did not exist. Labels are written in the grid,
# orientation and label values of the input (BraTS 2021: ET is 4).

# %%
smml("predict --case data/BraTS2021_00701 --output labels.nii.gz")
smml("predict --case data/BraTS2021_00701 --modalities flair --output flair_only.nii.gz")
written = nib.load(own / "labels.nii.gz")
assert np.allclose(written.affine, nib.load(case.sources["flair"]).affine)
print("label values on disk:", np.unique(np.asanyarray(written.dataobj)).tolist())

# %% [markdown]
# Files whose names say nothing are assigned: `--case flair=scan_07.nii.gz --case t1ce=scan_09.nii.gz`. With
# `--probabilities FILE.nii.gz`, the classes' probabilities are written too; `--checkpoint` takes your own run.
#
# ## The same from Python, and what can be exported
#
# The doubt is the disagreement of the two branches, from 0 to 1. It is *not* calibrated: low doubt can be wrong, on
# images that neither branch has learnt from above all.

# %%
predictor = Predictor.from_checkpoint("tiny")
result = predictor.segment(predictor.encode(case))
predictor.save(result, own / "labels.nii.gz", layout=case.layout, probabilities=own / "probabilities.nii.gz")
nib.save(nib.Nifti1Image(result.uncertainty, result.affine), own / "doubt.nii.gz")
voxel_ml = np.prod(case.spacing) / 1000
volumes = pd.DataFrame(
    {region: [predictor.scheme.region(result.labels, region).sum() * voxel_ml] for region in ("WT", "TC", "ET")},
    index=pd.Index([case.id], name="case"),
)
volumes.round(2).to_csv(own / "volumes_ml.csv")
volumes.round(1)

# %% [markdown]
# Pictures of the slices that hold most of the core: the labels, and the doubt.

# %%
core = predictor.scheme.region(result.labels, "TC")
place = tuple(int(core.sum(axis=others).argmax()) for others in ((1, 2), (0, 2), (0, 1)))
picture = Image.fromarray(viewer_picture(case, result, position=place, shown="t1ce"))
picture.save(own / "picture.png")
for path in sorted(own.glob("*.*")):
    print(f"{path.name:24s} {path.stat().st_size:9,d} bytes")
display(picture)

# %%
Image.fromarray(viewer_picture(case, result, overlay="uncertainty", position=place))

# %% [markdown]
# Here, for once, the truth is known: the case is simulated. Does the doubt lie where the errors are?

# %%
wrong = result.labels != source.label
inside = case.volumes["flair"] != 0
print(f"mean doubt where the label is wrong {result.uncertainty[wrong].mean():.3f}, "
      f"where it is right {result.uncertainty[inside & ~wrong].mean():.3f}")  # fmt: skip
print(f"share of the wrong voxels with a doubt below 0.1: {(result.uncertainty[wrong] < 0.1).mean():.0%}")

# %% [markdown]
# An error that both branches make alike leaves no doubt: a map of doubt finds some errors, never all.
#
# ## Other axes, thicker slices
#
# Scanners store their axes in every order and direction. The package turns them for the network and turns the result
# back, so that must change nothing, not one voxel. Thick slices are another matter: what was averaged is gone.


# %%
def rewritten(number, codes, thick=1):
    """The case with axes that point to `codes`, every `thick` slices along the last axis averaged, read from disk."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(source.affine), nib.orientations.axcodes2ornt(codes))
    affine = source.affine @ nib.orientations.inv_ornt_aff(turn, source.shape)
    made = {}
    for name, volume in two.items():
        turned = nib.apply_orientation(volume, turn)
        slices = turned.shape[2] // thick
        made[name] = turned[:, :, : slices * thick].reshape(*turned.shape[:2], slices, thick).mean(axis=3)
    # The first new slice lies in the middle of those that it averages.
    affine = affine @ nib.affines.from_matvec(np.diag([1, 1, thick]), [0, 0, (thick - 1) / 2])
    write_case(Case(number, made, None, affine, "brats2021"), own / "data")
    return read_case(own / "data" / f"BraTS2021_{number}")


variants = {"other axes": rewritten("00702", "SRP"), "thick slices": rewritten("00703", "LPS", 2)}
labels = {name: predictor.segment(predictor.encode(variant)).labels for name, variant in variants.items()}
axes = nib.io_orientation(variants["other axes"].affine), nib.io_orientation(case.affine)
back = nib.apply_orientation(labels["other axes"], nib.orientations.ornt_transform(*axes))
assert np.array_equal(back, result.labels)
print("other axes: the same label in every voxel")

# %%
labels["as it is"], variants["as it is"] = result.labels, case
rows = {}
for name in ("as it is", "other axes", "thick slices"):
    rows[name] = facts(variants[name])
    for region in ("WT", "TC", "ET"):
        voxels = predictor.scheme.region(labels[name], region).sum()
        rows[name][f"{region}, ml"] = round(float(voxels * np.prod(variants[name].spacing) / 1000), 1)
slices = source.shape[2] // 2 * 2
truth = source.scheme.region(source.label[:, :, :slices], "TC")
for name, found in (("as it is", result.labels[:, :, :slices]), ("thick slices", labels["thick slices"].repeat(2, 2))):
    rows[name]["Dice TC"] = round(dice(predictor.scheme.region(found, "TC"), truth), 2)
pd.DataFrame(rows).fillna("")

# %% [markdown]
# ## What errors look like
#
# Bad input ends in one sentence that says what was expected, what was found and what to do, before a network has seen
# anything; the command returns exit status 2 and writes no file. Five ways to get there:

# %%
flair, t1ce = (nib.load(folder / f"{folder.name}_{token}.nii.gz") for token in ("flair", "t1ce"))
bad, values = own / "bad", t1ce.get_fdata(dtype=np.float32)
for name in ("unclear", "shifted", "nan", "cut"):
    (bad / name).mkdir(parents=True)
    nib.save(flair, bad / name / ("scan_07.nii.gz" if name == "unclear" else "flair.nii.gz"))
up = nib.affines.from_matvec(np.eye(3), [0, 0, 5])  # 5 mm
nib.save(nib.Nifti1Image(values, up @ t1ce.affine), bad / "shifted" / "t1ce.nii.gz")
nib.save(nib.Nifti1Image(np.where(values > 0, values, np.nan), t1ce.affine), bad / "nan" / "t1ce.nii.gz")
(bad / "cut" / "t1ce.nii.gz").write_bytes((folder / f"{folder.name}_t1ce.nii.gz").read_bytes()[:5000])

smml("predict --case data/BraTS2021_00701 --modalities flair,t2 --output never.nii.gz")
for name in ("unclear/scan_07.nii.gz", "shifted", "nan", "cut"):
    smml(f"predict --case bad/{name} --output never.nii.gz")
assert not (own / "never.nii.gz").exists()

# %% [markdown]
# What is *not* an error: a skull that was left on, sequences under each other's names, a wrong side, a kind of image
# that training has not seen (after surgery, a child's, another field strength, another disease). The network answers
# all of them, in the same confident colours. Hence the look before, and these limits:
#
# - not for diagnosis, treatment or any decision about a patient; this is no medical device;
# - not with the shipped weights' word alone: they have seen no patient, and were measured on five;
# - no volumes over time from different scanners or sequences without measuring what that change alone does;
# - no claim about your data without a score on labelled cases *of your data* (`smml evaluate`, and
#   [notebook 5](05_evaluation.ipynb) on what the score means).
#
# ## Key points
#
# - The files' names say which sequence it is, and only what is named is read; what is missing is simply missing.
# - Results come back on the input's own grid and with its label values; turned axes change nothing.
# - What can be checked by a program is checked, in one sentence. Sides, swapped sequences and skulls are for your eyes.
# - Doubt is the disagreement of two networks trained on the same images: useful for finding errors, no guarantee.
#
# ## Exercises
#
# Replace the `...`, run the cell, then the check below it. The [solutions](solutions/08_your_own_case.py) say why.
#
# ### Exercise 8.1: Millilitres from a file
#
# A colleague sends a segmentation in the layout of BraTS 2021 and wants the volumes. All there is, is the file.


# %%
# Exercise 8.1
def volumes_of_file(path):
    """{"WT": ml, "TC": ml, "ET": ml} of a segmentation on disk with BraTS 2021's label values."""
    return ...


# %%
with course.check("8.1"):
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[1:9, 1:9, 1:9], labels[2:6, 2:6, 2:6], labels[3, 3, 3:5] = 2, 3, 1  # in memory: ED, ET, NCR
    path = course.build_folder() / "exercise" / "seg.nii.gz"
    write_segmentation(labels, path, np.diag([-0.5, -0.5, 6, 1]), "brats2021")
    mine = volumes_of_file(path)
    assert mine["ET"] > 0, "on disk ET is not 3"
    assert np.isclose(mine["WT"], 512 * 0.0015), f"WT: 512 voxels of 0.5 x 0.5 x 6 mm are {512 * 0.0015} ml"
    assert np.isclose(mine["TC"], 64 * 0.0015), "TC: ET and NCR/NET together, 64 voxels"
    assert np.isclose(mine["ET"], 62 * 0.0015), "ET: 62 voxels"

# %% [markdown]
# ### Exercise 8.2: Is the skull still there?
#
# A mistake that no error message tells of. In a skull-stripped image the air is exactly 0; in one that was
# not, it is noise. Write a test that one could put before a night's work on a thousand files. It should not be fooled
# by a file that is cropped closely to the brain, nor by a single zero voxel.


# %%
# Exercise 8.2
def looks_stripped(volume):
    """True if the background of [X, Y, Z] is exactly 0, False if it is noise."""
    return ...


# %%
with course.check("8.2"):
    random, grid = np.random.default_rng(0), np.indices((24, 24, 24)) - 11.5
    brain = ((grid / np.array([9, 11, 8])[:, None, None, None]) ** 2).sum(axis=0) < 1
    stripped = np.where(brain, random.normal(100, 10, brain.shape), 0)
    raw = np.where(brain, random.normal(100, 10, brain.shape), np.abs(random.normal(0, 3, brain.shape)))
    assert looks_stripped(stripped) in (True, False), "the answer is True or False"
    assert looks_stripped(stripped), "all but the brain is 0 here"
    assert not looks_stripped(raw), "the air is noise here"
    raw[0, 0, 0] = 0
    assert not looks_stripped(raw), "one voxel that happens to be 0 proves nothing"
    assert looks_stripped(stripped[3:21, 1:23, 4:20]), (
        "cropped to the brain: even then the corners of the box are empty"
    )

# %% [markdown]
# ## Read next
#
# **Next:** [9. Fused kernels](09_fused_kernels.ipynb), for those who want to know what makes training fast on a GPU.
# Else back to [0. A tour](00_tour.ipynb), on to training with your own data (the [README](../README.md) has the
# commands), or to [docs/EQUATIONS.md](../docs/EQUATIONS.md) for every equation.
