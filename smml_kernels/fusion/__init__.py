"""``masked_fusion``: its meaning (:mod:`.reference`), its forward (:mod:`.op`) and backward in Triton."""
