"""Sphinx: plain pages, an API page from docstrings, and notebooks that are executed."""

import importlib.metadata

project = "polyfuse"
author = "the polyfuse authors"
copyright = "the polyfuse authors"
release = importlib.metadata.version("polyfuse")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"polyfuse {release}"
html_static_path = ["_static"]
html_css_files = ["notebook.css"]
default_role = "literal"  # in docstrings, as `here`
html_show_sourcelink = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # the pages say what goes in; the signatures say how it is called
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False
