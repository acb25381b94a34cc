"""The four operations in plain PyTorch: what they mean, readable, and exact in float64.

This is the door to the file ``reference`` of each operation's folder, short enough to hold beside its equation. Faster
forms are measured against these.

=====================  =======================================================================================
``relation_loss``      L_rel, how far two sets of tokens disagree about which tokens resemble which
``masked_fusion``      conv1x1x1(LeakyReLU(InstanceNorm(.))) over the modalities that each sample has
``exchange_loss``      L_pc, two branches teach each other voxel by voxel where one of them is the better
``dice_ce_loss``       class-weighted cross-entropy plus soft Dice, the supervised term of every head
=====================  =======================================================================================
"""

from smml_kernels.dice_ce.reference import dice_ce_loss
from smml_kernels.exchange.reference import exchange_loss
from smml_kernels.fusion.reference import masked_fusion
from smml_kernels.relation.reference import relation_loss

__all__ = ["dice_ce_loss", "exchange_loss", "masked_fusion", "relation_loss"]
