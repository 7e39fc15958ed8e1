"""Sphinx configuration."""

from array_api_losses import __version__ as release

project = "array-api-losses"
author = "The array-api-losses developers"
version = release
extensions = [
    "matplotlib.sphinxext.plot_directive",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_design",
]
exclude_patterns = ["_build"]
default_role = "code"

autodoc_typehints = "none"  # the docstrings say more than `Any` does
napoleon_google_docstring = False
napoleon_use_param = False  # types are prose, not references
napoleon_use_rtype = False

plot_formats = ["svg"]
plot_html_show_formats = False
plot_html_show_source_link = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
html_theme = "pydata_sphinx_theme"
html_title = "array-api-losses"
html_show_sourcelink = False
html_sidebars = {"**": ["pages"]}
html_theme_options = {"navbar_center": [], "show_prev_next": True}
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
