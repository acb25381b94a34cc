"""``relation_loss``: how far two sets of tokens disagree about which tokens resemble which.

``reference`` what it means, in both forms; ``torch_linear`` the linear form in PyTorch with its gradient by hand, which
runs where no kernel can.

In Triton: ``op`` chooses the form and registers it with PyTorch; ``linear`` C x C moments in float64, ``difference``
the same in TensorFloat-32, ``direct`` N x N similarities that are never stored; ``rows`` what the forms share, from the
sums of a token to its loss and to the coefficients of its gradient.
"""
