"""A simulated glioma cohort on real average anatomy, so that everything runs without any patient's data.

Two editions stand beside each other. ``first`` (``anatomy``, ``tumour``, ``signal``) is what the shipped weights were
trained on. The second has two looks, ``typical`` and ``varied``: ``atlas`` is what all heads share, ``head`` warps,
folds and ages it, ``lesion`` grows a glioma in it, ``structures`` says what fills a voxel, ``contrast`` how bright each
tissue is, ``imaging`` what scanner and processing leave of that, and ``second`` is the whole way. ``subject`` makes one
subject in any look, ``cohort`` writes a folder of them. What comes out is *simulated* and is called so wherever it
appears.
"""
