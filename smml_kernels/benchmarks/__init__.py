"""How fast, how large and how right each operation is, beside the other ways of writing it.

    python -m smml_kernels.benchmarks            # on the GPU if there is one, else on the CPU
    python -m smml_kernels.benchmarks --quick    # fewer cases, fewer repeats

Every time stands beside the error against float64, and a formulation whose result or gradient is wrong is not timed at
all. Every ratio is taken within one run, on one machine; ceilings (copy bandwidth, matrix rates) are measured in the
same run, and floors (the fewest bytes and operations that a definition needs) are counted in
:mod:`~smml_kernels.benchmarks.floors`.

``floors`` the fewest bytes and operations, ``traffic`` the bytes that eager code moves, ``cases`` what is measured,
``public`` and ``contestants`` the formulations, ``check`` right before fast, ``timing`` and ``memory`` the
measurements, ``machine`` ceilings and provenance, ``runner`` one case from check to row, ``targets`` goals against
rows, ``report`` and ``roofline`` what is written.
"""
