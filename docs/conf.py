"""How Sphinx builds this site; ``make docs`` runs it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "mlcalib"
author = "The mlcalib developers"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "command_reference",
]
exclude_patterns = ["extensions"]

smartquotes = False  # they would make a dash of the two hyphens of an option

# Pages. Headings down to the fourth level can be linked to, by the names that GitHub gives them.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]
# Notebooks are pages as they were executed last (docs/notebooks/index.md says how and when).
nb_execution_mode = "off"

# The reference of the API, from docstrings.
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say in words what is given and returned
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 60
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Links from docstrings have targets. Other libraries and private modules have no page here.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!mlcalib).*"),
    ("py:.*", r"mlcalib\..*\._.*"),
]

html_theme = "furo"
html_title = "mlcalib"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True


def _keep_bars(_app, _what, _name, _object, _options, lines):
    """Let |x| in a docstring be a magnitude, and no substitution of reStructuredText."""
    lines[:] = [line if "`" in line else line.replace("|", r"\|") for line in lines]


def setup(app):
    """Register what runs between the steps of Sphinx."""
    app.connect("autodoc-process-docstring", _keep_bars)
