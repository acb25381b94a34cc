"""Sphinx's settings for the site; `make site` copies this file beside the pages that scripts/build_site.py gathers."""

project = "smml"
author = "the smml authors"
copyright = "the smml authors, MIT licence"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx.ext.mathjax"]

# Notebooks come with their outputs; what is printed in pieces is shown in one.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True  # Jupyter sets $$ inside a paragraph too
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a card may start below its first heading

# Docstrings in Google's style, under the names that users import.
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # fields of a dataclass as one list, not as entries of their own
autodoc_member_order = "alphabetical"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88

html_theme = "furo"
html_title = "smml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False  # it fetches pages, which a browser refuses when they are read from disk
# One file with its glyphs inside, so equations need neither a network nor fonts.
mathjax_path = "tex-svg.js"
