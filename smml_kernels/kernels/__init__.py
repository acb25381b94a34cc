"""The Triton kernels, one file an operation.

Every file reads top to bottom: what the operation costs and how its tiles are cut, the kernels, the launchers, the
registration with PyTorch. Importing this package needs Triton; :mod:`smml_kernels` imports it only where Triton is
installed.
"""
