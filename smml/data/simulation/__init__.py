"""A simulated glioma cohort on real average anatomy, so that everything runs without any patient's data.

``atlas`` is what all heads share, ``head`` warps, folds and ages it, ``lesion`` grows a glioma in it, ``structures``
says what fills a voxel, ``contrast`` how bright each tissue is, and ``imaging`` what scanner and processing leave of
that, in one of two looks: ``typical`` and ``varied``. ``subject`` goes this way for one subject, ``cohort`` writes a
folder of them. What comes out is *simulated* and is called so wherever it appears.
"""
