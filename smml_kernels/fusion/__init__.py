"""``masked_fusion``: the fusion layer over the modalities that each sample has.

``reference`` what it means. In Triton: ``op`` the forward pass and the registration with PyTorch, ``backward`` the
gradients, ``maps`` what both share: how kernels reach the maps, skip missing ones and normalise a voxel.
"""
