"""``dice_ce_loss``: its meaning (:mod:`.reference`) and its Triton kernels (:mod:`.op`)."""
