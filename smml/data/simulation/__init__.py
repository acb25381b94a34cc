"""A simulated glioma cohort on real average anatomy, so that everything runs without any patient's data.

``anatomy`` warps the MNI152 tissue maps into a subject, ``tumour`` grows a glioma in it, ``signal`` turns tissue into
the four MRI sequences, ``cohort`` writes the result as a BraTS-style folder. What comes out is *simulated* and is
called so wherever it appears.
"""
