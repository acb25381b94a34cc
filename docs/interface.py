"""What is public: the modules whose ``__all__`` the site's pages show and the tests of docstrings read."""

PACKAGES = (
    "smml.modalities",
    "smml.data",
    "smml.models",
    "smml.losses",
    "smml.sam",
    "smml.inference",
    "smml.evaluation",
    "smml.training",
    "smml.study",
    "smml.viewer",
    "smml.figures",
    "smml.cohort",
    "smml_kernels",
    "smml_kernels.reference",
)
