"""``relation_loss``: its meaning (:mod:`.reference`), the linear form in PyTorch, and three forms in Triton."""
