"""The reference site, of the pages of this folder and the docstrings: ``sphinx-build -W docs build/docs``."""

import re

project = "voxring"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "alabaster"
html_copy_source = False
exclude_patterns = ["tutorial.ipynb"]
default_role = "code"  # single backticks name what is here
napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    "exclude-members": "set_fit_request, set_partial_fit_request, set_score_request",  # scikit-learn's own
}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say types and shapes

_BAR = re.compile(r"(``.*?``|`[^`]*`)|\|")


def _escape_bars(app, what, name, obj, options, lines):
    """In our docstrings a bar is an absolute value or a size, in reStructuredText it begins a substitution."""
    for place, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[place] = _BAR.sub(lambda found: found[1] or r"\|", line)


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _escape_bars)
