"""The losses of masked mutual learning: what each branch learns from the truth and from the other branch.

======================  ==================  ====================================================================
function                paper               meaning
======================  ==================  ====================================================================
segmentation_loss       L_seg               every head of a branch against the truth
pixel_consistency       L_pc                the branch that is better at a voxel teaches the other there
feature_consistency     L_fc                both branches relate tokens and classes in the same way
refinement_loss         L_refine            the refined segmentation against the truth, and teaching its student
======================  ==================  ====================================================================

The per-voxel and per-token arithmetic is in :mod:`smml_kernels`; here it is applied to what a student puts out. All of
them compute in float32 at least, under autocast too.
"""

from smml.losses.feature import FeatureTerms, feature_consistency
from smml.losses.pixel import pixel_consistency
from smml.losses.refinement import RefinementTerms, refinement_loss
from smml.losses.segmentation import SegmentationTerms, segmentation_loss

__all__ = [
    "FeatureTerms",
    "RefinementTerms",
    "SegmentationTerms",
    "feature_consistency",
    "pixel_consistency",
    "refinement_loss",
    "segmentation_loss",
]
