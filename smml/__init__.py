"""Brain-tumour segmentation from whatever MRI sequences a patient has (SMML, AAAI 2025), taught and usable."""

__version__ = "0.1.0"
