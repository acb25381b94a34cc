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
# # 9. Fused kernels: bytes, not operations
#
# **Question.** Why is a loss of a few lines slow on a GPU, and what does a fused kernel do about it?
#
# After this notebook you can
# - count the bytes that eager PyTorch moves, and place an operation under a roofline;
# - read and write a Triton kernel, and test it without a GPU;
# - say how a missing modality is skipped exactly, and how many bytes that saves.
#
# A minute on two CPU cores. From [notebook 2](02_missing_modalities.ipynb) it needs the fusion layer,
# from [notebook 4](04_hierarchical_consistency.ipynb) the gates and the two forms of the relation loss. Triton
# *interprets* the kernels on the CPU: that shows that they are right, never how fast they are. Times are those of a
# committed report from a GPU.

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
from smml_kernels import benchmarks, emulator, reference
from smml_kernels.benchmarks import floors, public, roofline
from smml_kernels.benchmarks.runner import best_time
from smml_kernels.benchmarks.traffic import Traffic

figures.use_theme()

# %%
import json
from pathlib import Path

import pandas as pd
from IPython.display import Code, Markdown, display

words = "compiled, on this GPU" if device.type == "cuda" else "in Triton's interpreter, on the CPU"
print(f"Kernels run {words}." if triton else "Triton is not installed here: its cells are skipped, all others run.")
folder = Path(benchmarks.__file__).parent / "results"
report = json.loads((folder / "nvidia-h200.json").read_text())
card = report["provenance"]["hardware"]["device"]
print(f"GPU times: {card}, report of {report['provenance']['date'][:10]}")

# %% [markdown]
# ## Where the time goes: count bytes
#
# Eager PyTorch runs one operation after the other. Each reads its inputs from memory and writes its output there, even
# if the next one reads it back at once. `Traffic` counts that while code runs, as if nothing stayed in a cache. Two
# losses, forward and backward, in maps of logits. Needed: inputs read twice, gradients written.

# %%
shape = (1, 4, 48, 48, 48)
z1, z2 = (torch.randn(shape, device=device, requires_grad=True) for _ in range(2))
y = torch.randint(0, 4, (1, 48, 48, 48), device=device).to(torch.uint8)
losses = {"exchange_loss": lambda m: sum(m.exchange_loss(z1, z2, y)), "dice_ce_loss": lambda m: m.dice_ce_loss(z1, y)}
moved = {}
for loss, call in losses.items():
    for name, module in {"as usually published": public, "tidy eager": reference}.items():
        with Traffic() as traffic:
            call(module).backward()
        moved.setdefault(loss, {})[name] = traffic.total / z1.nbytes
    moved[loss]["needed"] = getattr(floors, loss)(shape, 4, 1).bytes("both") / z1.nbytes
pd.DataFrame(moved).round(1)

# %% [markdown]
# ## The roofline
#
# A machine has two ceilings: bytes a second from memory, and operations a second. Which one binds is decided by the
# operations per byte that a definition needs: the column of a point. Its height is speed, the distance to the roof
# waste. "Public" is code as usually published, "tidy eager" the package's reference, "ours" its Triton kernels:

# %%
first = {}  # one case an operation
for row in report["rows"]:
    if best_time(row) and row["contestant"] in ("public", "tidy eager", "ours"):
        first.setdefault((row["operation"], row["contestant"]), row)
roofline.roofline(report | {"rows": list(first.values())}).update_layout(width=900, height=480)


# %%
def ms(operation, who, shape):
    """Forward and backward, from the report."""
    rows = (r for r in report["rows"] if (r["operation"], r["contestant"], r["shape"]) == (operation, who, shape))
    return 1e3 * best_time(next(rows))


volume, table = [1, 4, 128, 128, 128], {}
for operation, shape in (("exchange_loss", volume), ("dice_ce_loss", volume), ("masked_fusion", [1, 8, 128, 128, 128]),
                         ("relation_loss", [32768, 128]), ("relation_loss", [1024, 512])):  # fmt: skip
    table[f"{operation} {shape}"] = {who: ms(operation, who, shape) for who in ("public", "tidy eager", "ours")}
display(pd.DataFrame.from_dict(table, orient="index").round(2).rename_axis("ms, forward and backward"))
last = table["relation_loss [1024, 512]"]
Markdown(f"The last line is the paper's size of the relation loss. There ours took "
         f"{last['ours'] / last['tidy eager']:.1f} times as long as tidy eager code, in its direct form; at this size "
         "it takes its linear form now, which has not been timed.")  # fmt: skip

# %% [markdown]
# The per-voxel losses and the fusion layer lie far left: they do a few operations a byte *even if no byte is wasted*,
# so memory binds them, and every wasted byte is time. Only the relation loss, which is matrix products, has work
# enough.
#
# ## A first kernel
#
# [Triton](https://triton-lang.org/) compiles Python functions marked `@triton.jit` for the GPU. Such a kernel is run by
# many **programs** at once. Each asks for its number, loads a **block** of data into registers, computes, and stores.
# This one normalises a row and activates it; between load and store nothing touches memory. A tensor argument is a
# *pointer*, so `x + row * n + column` is a block of addresses. `mask` protects those that are out of range: nothing is
# loaded there (`other` stands in), nothing stored. `tl.constexpr` is fixed at compile time. `normalise_kernel[(6,)]`
# starts 6 programs, one a row.

# %%
if triton:

    @triton.jit
    def normalise_kernel(x, out, n, EPS: tl.constexpr, SLOPE: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0)
        column = tl.arange(0, BLOCK)  # a power of two
        inside = column < n  # lanes (the elements of a block) beyond the row load and store nothing
        values = tl.load(x + row * n + column, mask=inside, other=0.0)
        mean = tl.sum(values, axis=0) / n
        off = tl.where(inside, values - mean, 0.0)
        normal = off / tl.sqrt(tl.sum(off * off, axis=0) / n + EPS)
        tl.store(out + row * n + column, tl.where(normal > 0, normal, SLOPE * normal), mask=inside)

    x = torch.randn(6, 1000, device=device) + 5
    mine = torch.empty_like(x)
    normalise_kernel[(6,)](x, mine, 1000, EPS=1e-5, SLOPE=0.2, BLOCK=1024)
    assert torch.allclose(mine, F.leaky_relu(F.instance_norm(x[None]), 0.2)[0], atol=1e-5)
    print("equal to PyTorch's instance norm and leaky ReLU")

# %% [markdown]
# ## A real kernel
#
# That was a toy: a row of $128^3$ voxels fits into no program's registers, a gradient is needed, and a missing row must
# not be read at all. Below is how the package's fusion layer mixes, a part of `_mix_kernel`. A program owns a tile of
# voxels and up to 16 output channels; an earlier kernel has summed means and deviations:

# %%
source = (Path(smml_kernels.__file__).parent / "fusion" / "op.py").read_text(encoding="utf-8")
kernel = source[source.index("def _mix_kernel") : source.index("def forward")]
part = kernel[kernel.index("    for m in range(M):") : kernel.index("    out += ")]
Code(part, language="python")

# %% [markdown]
# **A missing modality is the `if`**: no loads, no columns of $W$, no gradient. So NaN in a missing map changes no bit.
# Code that multiplies missing features by 0 fails twice: $0 \times \mathrm{NaN}$ is NaN, and the encoder and every
# later read and write are paid for.

# %%
implementation = "triton" if triton else "torch"
there = torch.tensor([[True, False, True], [False, False, True]], device=device)
maps = [torch.randn(2, 2, 4, 5, 3, device=device, requires_grad=True) for _ in range(3)]
weight, bias = torch.randn(4, 6, device=device, requires_grad=True), torch.randn(4, device=device)
with torch.no_grad():
    clean = smml_kernels.masked_fusion(maps, there, weight, bias, implementation=implementation)
    maps[1].fill_(float("nan"))  # nobody has modality 1
    maps[0][1] = float("nan")  # sample 1 lacks modality 0
out = smml_kernels.masked_fusion(maps, there, weight, bias, implementation=implementation)
gradient = torch.autograd.grad(out.square().sum(), maps)
assert torch.equal(out, clean)
assert not gradient[1].any()
print(f"{implementation}: NaN in missing maps changes no bit, their gradients are exactly 0")

# %% [markdown]
# Bytes, in units of one map. No voxel can be normalised before the statistics are known, so each map *present* is read
# twice, forward and again backward; the gradients of all maps are written, zeros for the missing. Beside it, counted,
# code as usually published, which sets missing maps to zero and then reads, normalises and mixes them all:

# %%
size, rows = (1, 8, 24, 24, 24), {}
maps = [torch.randn(size, device=device, requires_grad=True) for _ in range(4)]
weight, bias = (torch.randn(*s, device=device, requires_grad=True) for s in ((8, 32), (8,)))
for present in (4, 2, 1):
    need = floors.masked_fusion(size, 4, 8, present / 4, 4)
    given = torch.arange(4, device=device)[None] < present
    with Traffic() as forward:
        out = public.masked_fusion(maps, given, weight, bias).sum()
    with Traffic() as backward:
        out.backward()
    rows[f"{present} of 4 present"] = [need.bytes("forward"), need.bytes("backward"), forward.total, backward.total]
columns = ["needed, forward", "needed, backward", "public, forward", "public, backward"]
(pd.DataFrame.from_dict(rows, orient="index", columns=columns) / maps[0].nbytes).round(1)

# %% [markdown]
# ## The four ops
#
# | op | what is fused | what is never stored |
# |---|---|---|
# | `exchange_loss` | both softmaxes, gates, class weights, both divergences | probabilities, one-hot, gates |
# | `dice_ce_loss` | softmax, class weights, CE, the three sums of Dice | probabilities, one-hot volumes |
# | `masked_fusion` | select, InstanceNorm, LeakyReLU, 1×1×1 convolution | normalised or activated maps |
# | `relation_loss` | moments and projections, by tiles | any $N \times N$ matrix |
#
# Each gathers in one pass what the definition needs from *all* voxels, and **computes again in the backward pass what
# eager code stores**: a softmax costs less than reading it back.
#
# ## Testing kernels without a GPU
#
# - Every kernel has a plain PyTorch **reference**, exact in float64. The same tests run interpreted on a CPU and
#   compiled on a GPU. The error may be at most twice that of eager PyTorch in the same dtype, plus last digits.
# - **Poisoned memory.** `torch.empty` often returns what was there before, and a kernel that forgets its last element
#   passes by luck. In the tests fresh memory is NaN.
# - `torch.library.opcheck` checks registration, fake form (shapes without computing) and gradient of each op.
# - `python -m smml_kernels.aot` compiles the kernels for GPUs that are not there, and reads registers and *spills*,
#   registers that went to slow memory ([table](../results/kernels/resources.md)).

# %%
if triton:
    with torch.no_grad():  # a corner of the volume: interpreting is slow
        corner = [t[..., :12, :12, :12] for t in (z1, z2, y)]
        ours = smml_kernels.exchange_loss(*corner, implementation="triton")[0]
        eager = reference.exchange_loss(*corner)[0]
        exact = reference.exchange_loss(*(t.double() for t in corner[:2]), corner[2])[0]
    error, allowed = (abs(float(value - exact)) / float(exact) for value in (ours, eager))
    assert error <= 2 * allowed + 5e-7
    print(f"relative error of the kernel {error:.1e}, of eager PyTorch {allowed:.1e}")
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills fresh memory with NaN
    out = torch.empty(6, 1000, device=device)
    torch.use_deterministic_algorithms(False)
    normalise_kernel[(5,)](x, out, 1000, EPS=1e-5, SLOPE=0.2, BLOCK=1024)  # one program too few
    assert out[5].isnan().all()
    print("rows that the toy kernel forgot:", out.isnan().any(dim=1).nonzero()[:, 0].tolist())

# %% [markdown]
# What the interpreter cannot see: what the *threads* of a compiled kernel do to each other. An emulator runs the
# compiled text, PTX, thread by thread ([page](../docs/EMULATOR.md)); `make test-ptx` runs the kernels' tests in it.
# Here 64 threads reverse 64 numbers through shared memory, without a barrier and with one.

# %%
REVERSE = """
.version 8.4
.target sm_90
.address_size 64
.visible .entry reverse(.param .u64 numbers) .reqntid 64 {
    .reg .b32 %r<4>;  .reg .b64 %d<3>;  .shared .align 4 .b8 buffer[256];
    mov.u32 %r1, %tid.x;  shl.b32 %r2, %r1, 2;  st.shared.b32 [%r2], %r1;
    BARRIER
    xor.b32 %r2, %r2, 252;  ld.shared.b32 %r3, [%r2];
    ld.param.b64 %d1, [numbers];  mad.wide.u32 %d2, %r1, 4, %d1;  st.global.b32 [%d2], %r3;  ret;
}"""
numbers = torch.zeros(64, dtype=torch.int32)
memory = emulator.Allocation("numbers", numbers.data_ptr(), numbers.nbytes)
threads = emulator.Launch((1, 1, 1), 64, numbers.data_ptr().to_bytes(8, "little"), [memory])
for barrier in ("", "bar.sync 0;"):
    try:
        emulator.run(emulator.compile_kernel(emulator.parse(REVERSE.replace("BARRIER", barrier))), threads)
    except emulator.Fault as fault:
        print(fault)
assert numbers.tolist() == list(range(63, -1, -1))

# %% [markdown]
# With an NVIDIA GPU, `make gpu-report` runs the tests compiled, then the benchmarks; what is wrong is not timed.
#
# ## Key points
#
# - Per-voxel losses are bound by bytes. A fused kernel reads the inputs, keeps everything between in registers, and
#   computes again in the backward pass instead of storing.
# - A missing modality is an `if` in the kernel: no load, no multiplication, no gradient, no NaN.
# - The interpreter, poisoned memory, a float64 reference and ahead-of-time compilation test a kernel without a GPU;
#   they cannot tell its speed.
#
# ## Exercises
#
# Solutions: [solutions/09_fused_kernels.py](solutions/09_fused_kernels.py).
#
# ### Exercise 9.1: A kernel of your own
#
# Fuse $\mathrm{LeakyReLU}(a\,x + b)$ with slope 0.2 for tensors of any shape: one load, one store. A program takes 256
# neighbouring elements; the last one has fewer, and without a mask it writes past the end, which may end the whole
# Python process. (Without Triton, write it in PyTorch.)


# %%
# Exercise 9.1
def scale_shift_leaky(x, a, b):
    """LeakyReLU(a x + b) of a contiguous float32 tensor, a and b numbers; by one Triton kernel."""
    return ...


# %%
with course.check("9.1"):
    for shape in ((3,), (5, 100), (2, 3, 7, 11)):
        torch.manual_seed(0)
        x = torch.randn(shape, device=device)
        expected = F.leaky_relu(1.5 * x - 0.3, 0.2)
        mine = scale_shift_leaky(x, 1.5, -0.3)
        assert mine.shape == x.shape, f"the result of {shape} has the shape {tuple(mine.shape)}"
        assert torch.allclose(mine, expected, atol=1e-6), f"wrong for shape {shape}: mind the last, shorter block"

# %% [markdown]
# ### Exercise 9.2: Which ceiling binds?
#
# Interpret the roofline. A card moves 4 TB a second and does 50 TFLOP a second in float32; another does the same sums
# on tensor cores, sixteen times as fast, with the same memory. By what factor does each op get faster *at best*?


# %%
# Exercise 9.2
def speed_up(nbytes, operations):
    """The factor between the least times of the two cards, for an op of so many bytes and operations."""
    return ...


# %%
with course.check("9.2"):
    loss, relation = floors.exchange_loss((1, 4, 128, 128, 128), 4, 1), floors.relation_loss(32768, 128, 4)
    found = [speed_up(floor.bytes("both"), floor.flops("both")) for floor in (loss, relation)]
    assert abs(found[0] - 1) < 1e-6, f"the pixel loss waits for memory on both cards, and yet {found[0]:.1f}"
    assert found[1] < 16, "the relation loss meets the other ceiling before it is sixteen times as fast"
    times = [relation.seconds("both", 4e12, rate) for rate in (50e12, 800e12)]
    assert abs(found[1] - times[0] / times[1]) < 1e-6, "each card takes the larger of bytes / bandwidth and work / rate"

# %% [markdown]
# ## Read next
#
# `smml_kernels/dice_ce/op.py`, from top to bottom: kernels, launcher, autograd; its docstring is the derivation.
#
# This was the last notebook. Back to [0. A tour](00_tour.ipynb), or on to [CONTRIBUTING](../CONTRIBUTING.md), "How to
# add a kernel".
