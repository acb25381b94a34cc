"""What the operations share.

``launch`` where kernels can run and what every launch needs, ``operation`` how kernels become an operation of PyTorch
with a gradient, ``tiles`` how the per-voxel losses cut a volume, ``targets`` which labels fit a prediction and what a
class weighs, ``ranks`` sums over the ranks of a process group.
"""
