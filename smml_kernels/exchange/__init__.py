"""``exchange_loss``: two branches teach each other, voxel by voxel, where one of them is the better.

``reference`` what it means, and the gates; ``op`` its Triton kernels, forward and backward, and their registration with
PyTorch.
"""
