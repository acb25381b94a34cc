"""``dice_ce_loss``: class-weighted cross-entropy plus soft Dice of one head.

``reference`` what it means; ``op`` its Triton kernels, forward and backward, and their registration with PyTorch.
"""
