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
# # 5. Fused kernels: bytes, not operations
#
# **Question.** Why is a loss of a few lines slow on a GPU, and what does a fused kernel do about it?
#
# After this notebook you can
# - count the bytes that eager PyTorch moves, and place an operation under a roofline;
# - write a Triton kernel, run it without a GPU, and compare it with PyTorch;
# - say what each of the package's four ops fuses, and how it skips a missing modality exactly;
# - say when the linear relation loss pays, and why it adds up in float64;
# - test, compile and profile kernels, with and without a GPU.
#
# About a minute on two CPU cores, 1 GB of memory. No GPU is needed: Triton *interprets* the kernels on the CPU. That
# shows that they are right, never how fast they are. **No GPU time is quoted here unless a committed report holds it.**

# %%
import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler announces itself otherwise

import torch
import torch.nn.functional as F

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if device.type == "cpu":  # Triton decides when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
try:
    import triton
    import triton.language as tl
except ImportError:  # it exists for Linux on x86-64
    triton = None

import smml_kernels
from smml import course, figures
from smml_kernels import benchmarks, reference
from smml_kernels.benchmarks import floors, public, roofline
from smml_kernels.benchmarks.traffic import Traffic

figures.use_theme()

# %%
import json
import time
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from IPython.display import display

words = "compiled, on this GPU" if device.type == "cuda" else "in Triton's interpreter, on the CPU"
print(f"Kernels run {words}." if triton else "Triton is not installed here: its cells are skipped, all others run.")
reports = {
    path.stem: json.loads(path.read_text()) for path in (Path(benchmarks.__file__).parent / "results").glob("*.json")
}
for name, run in reports.items():
    print(f"committed report {name}: {run['provenance']['hardware']['cpu']}, {run['provenance']['date'][:10]}")
on_cpu = reports["cpu"]
on_gpu = {name: run for name, run in reports.items() if run["provenance"]["hardware"]["device"] != "cpu"}
print("GPU reports:", ", ".join(on_gpu) or "none committed yet, so GPU times below are 'not measured'")

# %% [markdown]
# ## Where the time goes: count bytes
#
# Eager PyTorch runs one operation after the other. Each reads its inputs from memory and writes its output there, even
# if the next one reads it back at once. `Traffic` counts that while code runs, as if nothing stayed in a cache, which
# is so for large volumes. Three operations on one map of 32 MB:

# %%
x = torch.randn(1, 8, 100, 100, 100, device=device)
with Traffic() as traffic:
    out = F.leaky_relu(F.instance_norm(x), 0.2) * 2
print(f"{traffic.total / x.nbytes:.1f} maps in all")
pd.DataFrame({"calls": traffic.calls, "maps moved": {k: v / x.nbytes for k, v in traffic.bytes.items()}}).round(2)

# %% [markdown]
# Six maps to turn one into another, where three would do: read it for the mean, read it again, write it. Now the pixel
# loss of the last notebook: one formula, a dozen lines. Forward and backward, in units of one map of logits:

# %%
shape = (1, 4, 48, 48, 48)
z1, z2 = (torch.randn(shape, device=device, requires_grad=True) for _ in range(2))
y = torch.randint(0, 4, (1, 48, 48, 48), device=device).to(torch.uint8)
rows = {}
for name, module in {"as usually published": public, "tidy eager": reference}.items():
    with Traffic() as traffic:
        sum(module.exchange_loss(z1, z2, y)).backward()
    largest = ", ".join(f"{op} {size / z1.nbytes:.0f}" for op, size in traffic.bytes.most_common(4))
    rows[name] = {"maps moved": round(traffic.total / z1.nbytes, 1), "most by": largest}
least = floors.exchange_loss(shape, itemsize=4, target_itemsize=1).bytes("both") / z1.nbytes
rows["needed"] = {"maps moved": round(least, 1), "most by": "both inputs read twice, both gradients written"}
pd.DataFrame.from_dict(rows, orient="index")

# %% [markdown]
# ## The roofline
#
# A machine has two ceilings: bytes a second from memory, and operations a second. Which one an operation hits is
# decided by its **arithmetic intensity**, operations per byte, against the machine's **balance**, the quotient of the
# two ceilings:

# %%
work = {
    "exchange_loss": floors.exchange_loss(shape, 4, 1),
    "dice_ce_loss": floors.dice_ce_loss(shape, 4, 1),
    "masked_fusion, 4 of 4, C = 8": floors.masked_fusion((1, 8, 128, 128, 128), 4, 8, 1.0, 4),
    "relation_loss, C = 128": floors.relation_loss(32768, 128, 4),
}
intensity = {name: floor.flops("both") / floor.bytes("both") for name, floor in work.items()}
ceilings = on_cpu["ceilings"]
balance = {
    f"{on_cpu['provenance']['hardware']['cpu']}, float32 (committed report)":
        ceilings["float32"] / ceilings["copy_bytes_per_s"],
    "NVIDIA H100 SXM, float32 (data sheet: 67 TFLOP/s, 3.35 TB/s)": 67e12 / 3.35e12,
}  # fmt: skip
pd.Series(intensity | balance, name="operations per byte").round(1).to_frame()

# %% [markdown]
# The per-voxel losses and the fusion layer do a few operations a byte *even if no byte is wasted*: on a GPU, which can
# do many more in the time of a byte, they are bound by memory. Eager code adds bytes, and the time grows with them.
# Only the relation loss, which is matrix products, has work enough. (The data sheet is
# [NVIDIA's](https://www.nvidia.com/en-us/data-center/h100/); its figures are peaks.)
#
# Measured on a CPU, from the committed report (`python -m smml_kernels.benchmarks`). Height is speed; the column is
# what the definition needs; the distance to the roof is waste:

# %%
figure = roofline.roofline(on_cpu)
figure.update_layout(width=920, height=480)

# %% [markdown]
# "Ours" on a CPU is PyTorch as well: the package's kernels run on NVIDIA GPUs, and `auto` picks tidy PyTorch elsewhere.
#
# ## A first kernel
#
# [Triton](https://triton-lang.org/) compiles Python functions marked `@triton.jit` for the GPU. Such a kernel is run by
# many **programs** at once. Each asks for its number, loads a **block** of data into registers, computes, and stores.
# This one normalises a row and activates it: a row is one channel of one map, so this is the heart of the fusion layer.
# Between the load and the store nothing touches memory. To read it:
#
# - a tensor argument arrives as a *pointer* to its first number, so `x + row * n + column` is a block of addresses;
# - `mask` protects those that are out of range: nothing is loaded there (`other` stands in) and nothing stored;
# - `tl.constexpr` marks what is fixed at compile time;
# - `normalise_kernel[(len(x),)]` called with the arguments starts `len(x)` programs, here one a row.

# %%
if triton:

    @triton.jit
    def normalise_kernel(x, out, n, EPS: tl.constexpr, SLOPE: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0)
        column = tl.arange(0, BLOCK)  # a power of two
        inside = column < n  # lanes beyond the row load and store nothing
        values = tl.load(x + row * n + column, mask=inside, other=0.0)
        mean = tl.sum(values, axis=0) / n
        off = tl.where(inside, values - mean, 0.0)
        normal = off / tl.sqrt(tl.sum(off * off, axis=0) / n + EPS)
        tl.store(out + row * n + column, tl.where(normal > 0, normal, SLOPE * normal), mask=inside)


def normalise(x):
    """LeakyReLU(InstanceNorm(x)) of [rows, n] by one program a row."""
    out = torch.empty_like(x)
    normalise_kernel[(len(x),)](x, out, x.shape[1], EPS=1e-5, SLOPE=0.2, BLOCK=triton.next_power_of_2(x.shape[1]))
    return out


# %%
x = torch.randn(6, 1000, device=device) + 5
theirs = F.leaky_relu(F.instance_norm(x[None]), 0.2)[0]
if triton:
    began = time.perf_counter()
    mine = normalise(x)
    print(
        f"{1e3 * (time.perf_counter() - began):.0f} ms, a time that says nothing: it was interpreted or compiled first"
    )
    assert torch.allclose(mine, theirs, atol=1e-5)
    print(f"largest difference to PyTorch {float((mine - theirs).abs().max()):.1e}")

# %% [markdown]
# Three things make this a toy. A row of $128^3$ voxels fits into no program's registers, so statistics are made by many
# programs and merged, without letting a sum of squares cancel. A gradient is needed. And a missing row must not be read
# at all. The package's kernels do all three.
#
# ## The four ops
#
# | op | what is fused | what is never stored |
# |---|---|---|
# | `exchange_loss` | both softmaxes, gates, class weights, both divergences | probabilities, one-hot, gates |
# | `dice_ce_loss` | softmax, class weights, CE, the three sums of Dice | probabilities, one-hot volumes |
# | `masked_fusion` | select, InstanceNorm, LeakyReLU, 1×1×1 convolution | normalised or activated maps |
# | `relation_loss` | moments and projections, by tiles | any $N \times N$ matrix |
#
# Each gathers in one pass what the definition needs from *all* voxels (class counts, sums, means), and **computes again
# in the backward pass what eager code stores**: a softmax costs less than reading it back. Bytes moved, forward and
# backward, against the least that the definition needs (an operation that reads its input twice, as a norm does, is
# counted as reading it once, so eager code is let off lightly):

# %%
maps = [torch.randn(1, 8, 24, 24, 24, device=device, requires_grad=True) for _ in range(4)]
weight = torch.randn(8, 32, device=device, requires_grad=True)
bias = torch.randn(8, device=device, requires_grad=True)
tokens = [torch.randn(1024, 64, device=device, requires_grad=True) for _ in range(2)]
everything = torch.ones(1, 4, dtype=torch.bool, device=device)
calls = {
    "exchange_loss": lambda m: sum(m.exchange_loss(z1, z2, y)),
    "dice_ce_loss": lambda m: m.dice_ce_loss(z1, y),
    "masked_fusion": lambda m: m.masked_fusion(maps, everything, weight, bias).sum(),
    "relation_loss (1024, 64)": lambda m: m.relation_loss(*tokens),
}
least = [floors.exchange_loss(shape, 4, 1), floors.dice_ce_loss(shape, 4, 1),
         floors.masked_fusion((1, 8, 24, 24, 24), 4, 8, 1.0, 4), floors.relation_loss(1024, 64, 4)]  # fmt: skip
figure = go.Figure()
for name, module, colour in (("as usually published", public, "#D55E00"), ("tidy eager", reference, "#56B4E9")):
    ratios = []
    for call, floor in zip(calls.values(), least, strict=True):
        with Traffic() as traffic:
            call(module).backward()
        ratios.append(traffic.total / floor.bytes("both"))
    figure.add_bar(x=list(calls), y=ratios, name=name, marker_color=colour, text=[f"{r:.0f}×" for r in ratios])
figure.update_yaxes(type="log", dtick=1, range=[0, 2.3], title="bytes moved / bytes needed")
figure.update_layout(title="Eager code against the least traffic (counted)", barmode="group", width=860, height=360)

# %% [markdown]
# ## Masked fusion: missing modalities are skipped exactly
#
# $y = b + \sum_{m\ \text{present}} W_m\,\mathrm{LReLU}(\mathrm{IN}(f_m))$. In the kernel, a modality that is missing is
# an `if`: its loads, its columns of $W$ and its gradient are not made. So NaN in a missing map changes no bit, the map
# may not exist at all, and its gradient is exactly 0:

# %%
implementation = "triton" if triton else "torch"
there = torch.tensor([[True, False, True], [False, False, True]], device=device)
maps = [torch.randn(2, 2, 4, 5, 3, device=device, requires_grad=True) for _ in range(3)]
weight, bias = torch.randn(4, 6, device=device, requires_grad=True), torch.randn(4, device=device)
with torch.no_grad():
    clean = smml_kernels.masked_fusion(maps, there, weight, bias, implementation=implementation)
    maps[1].fill_(float("nan"))  # nobody has modality 1
    maps[0][1] = float("nan")  # sample 1 lacks modality 0
found = {}
for which in {implementation, "torch"}:
    out = smml_kernels.masked_fusion(maps, there, weight, bias, implementation=which)
    found[which] = (out, *torch.autograd.grad(out.square().sum(), (*maps, weight)))
assert torch.equal(found[implementation][0], clean)
for ours, theirs in zip(found[implementation], found["torch"], strict=True):
    assert torch.allclose(ours, theirs, atol=1e-4)
assert not found[implementation][2].any()
print(f"{implementation}: NaN in missing maps changes no bit, gradients agree, those of missing maps are exactly 0")

# %% [markdown]
# **Its tiling.** Statistics must be known before the first voxel can be normalised, so maps are read twice: by a kernel
# that sums (a mean and a sum of squares about it, merged pairwise, so that nothing cancels), and by one that mixes. In
# that one a program owns a tile of voxels and up to 16 output channels. It walks over the present modalities and their
# channels, one at a time: load the tile, normalise and activate in registers, add its multiples to all outputs. How
# large a tile is depends on how many programs a GPU wants:

# %%
if triton:
    from smml_kernels.fusion.maps import tiling

    rows = []
    for name, channels, edge in (("level 1, 128³", 8, 128), ("level 3, 32³", 32, 32), ("level 5, 8³", 128, 8)):
        chunk, block = tiling(channels, edge**3, 1, torch.float32)
        programs = -(-channels // chunk) * -(-(edge**3) // block)
        rows.append({"": name, "channels": channels, "channels a program": chunk, "voxels a program": block,
                     "programs": programs})  # fmt: skip
    display(pd.DataFrame(rows).set_index(""))

# %% [markdown]
# What skipping is worth, from the committed report (CPU, PyTorch's form of the same rule). On a GPU: *not measured*,
# unless the second cell of this notebook named a report.

# %%
timed = [row for row in on_cpu["rows"] if row["operation"] == "masked_fusion" and row["status"] == "ok"]
figure = go.Figure()
for name, colour in (("public", "#D55E00"), ("public, multiplied", "#E69F00"), ("ours", "#0072B2")):
    mine = [row for row in timed if row["contestant"] == name]
    figure.add_bar(x=[row["presence"] for row in mine], y=[1e3 * row["eager"]["both"]["p50"] for row in mine],
                   name=name, marker_color=colour)  # fmt: skip
cpu = on_cpu["provenance"]["hardware"]
figure.update_yaxes(title="ms, forward and backward")
figure.update_xaxes(title="modalities present")
title = f"masked_fusion on {cpu['cpu']}, {cpu['threads']} threads"
figure.update_layout(title=title, barmode="group", width=760, height=340)

# %% [markdown]
# ## The relation loss: linear in N, and when it is not worth it
#
# [Notebook 4](04_hierarchical_consistency.ipynb) derives it: all partners of a token enter through three $C\times C$
# moments. How much work is that, if nothing is stored for the backward pass? Its matrix products, with two operations,
# a multiplication and an addition, for each term of a sum:
#
# | | forward | backward | each |
# |---|---|---|---|
# | linear | 3 moments, 3 projections on them | 3 moments weighted by the gradient, 8 projections | $2NC^2$ |
# | direct | 2 matrices $G$ | the 2 again, and 2 products of their gradients with the tokens | $2N^2C$ |

# %%
products = {"linear": (3 + 3) + (3 + 8), "direct": 2 + (2 + 2)}
linear, direct = (2 * number for number in products.values())
assert linear * 1000 * 64**2 == floors.relation_loss(1000, 64, 4, "linear").flops("both")
assert direct * 1000**2 * 64 == floors.relation_loss(1000, 64, 4, "direct").flops("both")
even = linear / direct
print(f"forward and backward: {linear} NC² against {direct} N²C, equal at N = {even:.2f} C")

# %% [markdown]
# Operations are not time. Measured here, in float64 both, with $C = 64$:


# %%
def seconds(n, form, repeats=3):
    """Best time of L_rel, forward and backward, at [n, 64]."""
    f1, f2 = (torch.randn(n, 64, device=device, requires_grad=True) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        smml_kernels.relation_loss(f1, f2, form=form, implementation="torch").backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


sizes = [64, 128, 256, 512, 1024, 2048] if not course.FAST else [64, 512]
times = {form: [seconds(n, form) for n in sizes] for form in ("direct", "linear")}
figure = go.Figure()
for form, colour in (("direct", "#D55E00"), ("linear", "#0072B2")):
    label = {"direct": "N × N", "linear": "C × C"}[form]
    figure.add_scatter(x=sizes, y=[1e3 * t for t in times[form]], name=label, line_color=colour, mode="lines+markers")
figure.add_vline(x=even * 64, line_dash="dot", line_color="#777777")
figure.update_xaxes(type="log", title="tokens N", tickvals=sizes)
figure.update_yaxes(type="log", title="ms, forward and backward")
figure.update_layout(title=f"L_rel on this machine, C = 64; dotted: N = {even:.1f} C", width=720, height=360)

# %%
crossed = [n for n, d, li in zip(sizes, times["direct"], times["linear"], strict=True) if li < d]
print(f"linear is faster here from N = {min(crossed, default='(nowhere in this range)')} on; "
      f"at N = {sizes[-1]} by a factor of {times['direct'][-1] / times['linear'][-1]:.0f}")  # fmt: skip

# %% [markdown]
# And memory, from the committed report with $C = 128$, beside a formula: eight $N \times N$ matrices of float32, or at
# most eight $N \times C$ of float64.

# %%
extra = {(row["shape"][0], row["contestant"]): row["peak_bytes"] for row in on_cpu["rows"]
         if row["operation"] == "relation_loss" and row["status"] == "ok"}  # fmt: skip
rows = []
for n in sorted({n for n, _ in extra}):
    formula = {"public": 8 * 4 * n * n, "ours": 8 * 8 * n * 128}
    row = {"N": n}
    for form, name in (("public", "N × N"), ("ours", "C × C")):
        found = extra.get((n, form))
        row[f"{name}, MB"] = f"{found / 1e6:,.0f}" if found else "not measured"
        row[f"{name}, formula"] = f"{formula[form] / 1e6:,.0f}"
    rows.append(row)
pd.DataFrame(rows).set_index("N")

# %% [markdown]
# Doubling $N$ quadruples the one and doubles the other. So: the linear form is **not worth it for few tokens per
# channel**, where it does more work and there is no memory to save. The published bottleneck is on that side; there the
# GPU kernel makes the tiles of $N \times N$ in registers and forgets them, so that it stores nothing of that size
# either.
#
# ## Why float64
#
# Training drives the branches together, and $2 - 2\cos$ then subtracts two nearly equal numbers. Let branch 2 be a
# rotated copy of branch 1 plus a little noise, so that the loss is anything from 1e-1 down to 1e-8:


# %%
def cosine_form(f1, f2):
    """L_rel by moments, in the dtype of the features."""
    s, a, b = (((x @ (x.T @ y)) * y).sum(1) for x, y in ((f1, f2), (f1, f1), (f2, f2)))
    return (2 - 2 * s / (a.sqrt() * b.sqrt())).mean()


torch.manual_seed(0)
f1 = torch.randn(512, 64, dtype=torch.float64)
rotation = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64)).Q
rows = []
for noise in (3e-1, 3e-2, 3e-3, 3e-4, 1e-4):
    f1, f2 = f1.float().double(), (f1 @ rotation + noise * torch.randn_like(f1)).float().double()
    exact = reference.relation_loss(f1, f2, form="direct")
    near1, near2 = f1.float(), f2.float()
    forms = {
        "C × C, float32": cosine_form(near1, near2),
        "N × N, float32": public.relation_loss(near1, near2),
        "C × C, float64 (the package)": smml_kernels.relation_loss(near1, near2, form="linear"),
    }
    errors = {name: f"{abs(float(value) / float(exact) - 1):.0e}" for name, value in forms.items()}
    rows.append({"loss": f"{float(exact):.1e}"} | errors)
pd.DataFrame(rows).set_index("loss").rename_axis("relative error at a loss of")

# %% [markdown]
# Naive float32 moments lose the loss where it matters most. So the package's moments are float64 (tensor cores of data
# centre GPUs multiply float64 too); TensorFloat-32 is used only if `torch.set_float32_matmul_precision` allows it, and
# then in a form that subtracts first.
#
# ## Testing kernels without a GPU
#
# Every kernel has a plain PyTorch **reference** that is exact in float64, and the same tests run interpreted on a CPU
# and compiled on a GPU. The tolerance is not a guess: the error against float64 may be at most twice that of eager
# PyTorch in the same dtype, plus the last digits.

# %%
if triton:
    with torch.no_grad():  # a corner of the volume: interpreting is slow
        corner = [t[..., :12, :12, :12] for t in (z1, z2, y)]
        ours = smml_kernels.exchange_loss(*corner, implementation="triton")[0]
        eager = reference.exchange_loss(*corner)[0]
        exact = reference.exchange_loss(*(t.double() for t in corner[:2]), corner[2])[0]
    error, allowed = (abs(float(value - exact)) / float(exact) for value in (ours, eager))
    print(f"relative error of the kernel {error:.1e}, of eager PyTorch {allowed:.1e}")
    assert error <= 2 * allowed + 5e-7
    small = [torch.randn(1, 3, 4, 3, 2, device=device, requires_grad=True) for _ in range(2)]
    labels = torch.randint(0, 3, (1, 4, 3, 2), device=device)
    op = torch.ops.smml_kernels.exchange.default
    kinds = (
        "test_schema",
        "test_autograd_registration",
        "test_faketensor",
    )  # the tests also trace it for torch.compile
    checks = torch.library.opcheck(op, (*small, labels, "lower_ce", 0.05, ""), test_utils=kinds)
    print("opcheck:", checks)

# %% [markdown]
# **Poisoned memory.** `torch.empty` often returns what was there before, and a kernel that forgets to write its last
# element then passes by luck. In the tests fresh memory is NaN. Here the toy kernel is launched with one program too
# few:

# %%
if triton:
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills fresh memory with NaN
    out = torch.empty(6, 1000, device=device)
    torch.use_deterministic_algorithms(False)
    normalise_kernel[(5,)](x, out, 1000, EPS=1e-5, SLOPE=0.2, BLOCK=1024)
    print("rows with NaN:", out.isnan().any(dim=1).nonzero()[:, 0].tolist())
    assert out[5].isnan().all()

# %% [markdown]
# **Compiling for GPUs that are not there.** `python -m smml_kernels.aot` sends the real launchers to Triton's compiler
# with a stand-in driver and reads registers, shared memory and stack of each kernel: a stack above 0 is a *spill*,
# registers that went to slow memory. The committed table in short, for compute capability 9.0:

# %%
text = (course.results_folder() / "kernels" / "resources.md").read_text(encoding="utf-8")
table = [
    [cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
]
frame = pd.DataFrame(table[2:], columns=table[0])
frame[table[0][2:]] = frame[table[0][2:]].astype(int)
frame["op"] = frame["case"].str.split().str[0]
frame = frame[frame["sm"] == 90]
spilled = ("stack, bytes", lambda stack: int((stack > 0).sum()))
columns = {"kernels": ("kernel", "size"), "registers, median": ("registers", "median")}
columns |= {"registers, most": ("registers", "max"), "shared memory, most": ("shared, bytes", "max"), "spills": spilled}
frame.groupby("op").agg(**columns)

# %% [markdown]
# ## Profiling
#
# `torch.profiler` lists what ran. On a CPU it shows operations, on a GPU the kernels too; a fused loss is a handful of
# them where eager has dozens:

# %%
activities = [torch.profiler.ProfilerActivity.CPU]
activities += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
with torch.profiler.profile(activities=activities) as profile:
    sum(public.exchange_loss(z1, z2, y)).backward()
events = [event for event in profile.key_averages() if event.key.startswith("aten::") and event.self_cpu_time_total]
total = sum(event.self_cpu_time_total for event in events)
top = sorted(events, key=lambda event: -event.self_cpu_time_total)[:6]
rows = {event.key: {"calls": event.count, "share": f"{100 * event.self_cpu_time_total / total:.0f} %"} for event in top}
pd.DataFrame.from_dict(rows, orient="index")

# %% [markdown]
# On a machine with an NVIDIA GPU:
#
# - `make gpu-report` runs the kernel tests compiled, then the benchmarks, and writes a report as JSON and Markdown;
#   `python -m smml_kernels.benchmarks` is the benchmark alone. It refuses to time a formulation that is wrong.
# - `ncu --set roofline --kernel-name regex:_mix_kernel python your_script.py` (Nsight Compute) measures one kernel:
#   compare *DRAM throughput* with the bytes of `floors` over its duration. Far below the roof with few bytes: too few
#   programs, or too many registers. More bytes than the floor: something is read twice.
# - `nsys profile` shows the gaps *between* kernels. Small kernels wait for their launch; a CUDA graph takes that away.
#
# What GPU reports say so far:

# %%
rows = [
    {"report": name, "case": row["case"], "ms": 1e3 * row["eager"]["both"]["p50"], "roof": row["share_of_ceiling"]}
    for name, run in on_gpu.items()
    for row in run["rows"]
    if row["status"] == "ok" and row["contestant"] == "ours"
]
pd.DataFrame(rows or [{"report": "none", "case": "all four ops on a GPU", "ms": "not measured"}]).set_index("report")

# %% [markdown]
# ## Key points
#
# - Per-voxel losses are bound by bytes. Eager code moves many times what the definition needs; a fused kernel reads the
#   inputs, keeps everything between in registers, and computes again in the backward pass instead of storing.
# - A missing modality is an `if` in the kernel: no load, no multiplication, no gradient, no NaN.
# - $L_{rel}$ is linear in $N$ through $C \times C$ moments, in float64 because the branches are meant to agree. It is
#   not worth it below about 3 tokens per channel.
# - The interpreter, opcheck, poisoned memory, a float64 reference and ahead-of-time compilation find most faults of a
#   kernel without a GPU. Speed is the one thing they cannot tell.
#
# ## Exercises
#
# Solutions: [solutions/05_fused_kernels.py](solutions/05_fused_kernels.py).
#
# ### Exercise 5.1: A kernel of your own
#
# Fuse $\mathrm{LeakyReLU}(a\,x + b)$ with slope 0.2 for tensors of any shape: one load, one store. A program takes 256
# neighbouring elements; the last one has fewer. (Without Triton, write it in PyTorch.)


# %%
# Exercise 5.1
def scale_shift_leaky(x, a, b):
    """LeakyReLU(a x + b) of a contiguous float32 tensor, a and b numbers; by one Triton kernel."""
    return ...


# %%
with course.check("5.1"):
    for shape in ((3,), (5, 100), (2, 3, 7, 11)):
        torch.manual_seed(0)
        x = torch.randn(shape, device=device)
        expected = F.leaky_relu(1.5 * x - 0.3, 0.2)
        mine = scale_shift_leaky(x, 1.5, -0.3)
        assert mine.shape == x.shape, f"the result of {shape} has the shape {tuple(mine.shape)}"
        assert torch.allclose(mine, expected, atol=1e-6), f"wrong for shape {shape}: mind the last, shorter block"

# %% [markdown]
# ### Exercise 5.2: Count bytes
#
# Soft Dice of one class, written eagerly, is `2 * (p * t).sum() / (p.sum() + t.sum())` for maps $p$ and $t$ of float32.
# How many maps does it read and write, and how many would one fused pass?


# %%
# Exercise 5.2
def dice_traffic():
    """(maps moved by eager code, maps moved by one fused pass), forward only; numbers of a few bytes count 0."""
    return ...


# %%
with course.check("5.2"):
    eager, fused = dice_traffic()
    p, t = torch.rand(2, 50_000)
    with Traffic() as traffic:
        2 * (p * t).sum() / (p.sum() + t.sum())
    assert eager == round(traffic.total / p.nbytes), "list each operation: what does it read, what does it write?"
    assert fused == 2, "both maps must be read once, and the result is a single number"

# %% [markdown]
# ### Exercise 5.3: The break-even, when rates differ
#
# Forward and backward the direct form takes $12N^2C$ operations, the linear one $34NC^2$, as counted above. Suppose
# that the machine does the products of the direct form (float32) at one rate and those of the linear form (float64) at
# another. From which $N$ on is the linear form faster?


# %%
# Exercise 5.3
def break_even(channels, direct_rate=1.0, linear_rate=1.0):
    """The N at which both forms take the same time, from rates in operations a second."""
    return ...


# %%
with course.check("5.3"):
    from smml_kernels.relation.reference import choose_form

    for c in (16, 128, 512):
        n = break_even(c)
        assert choose_form("auto", int(0.95 * n), c, grouped=False) == "direct", f"{n:.0f} is too large for C = {c}"
        assert choose_form("auto", int(1.05 * n), c, grouped=False) == "linear", f"{n:.0f} is too small for C = {c}"
    n = break_even(128, direct_rate=2e12, linear_rate=1e12)
    direct, linear = (floors.relation_loss(1000, 128, 4, form).flops("both") for form in ("direct", "linear"))
    times = direct * (n / 1000) ** 2 / 2e12, linear * (n / 1000) / 1e12
    assert abs(times[0] / times[1] - 1) < 0.01, f"at N = {n:.0f} the forms take {times[0]:.2e} s and {times[1]:.2e} s"

# %% [markdown]
# ## Read next
#
# `smml_kernels/dice_ce/op.py`, from top to bottom: kernels, launcher, autograd; its docstring is the derivation.
#
# **Next:** [6. Refinement](06_refinement.ipynb).
