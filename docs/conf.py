"""The site: Sphinx reads the pages beside this file, and the API reference from the docstrings."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE / "_extensions"), str(ROOT), str(ROOT / "kernels")]

import bigjko  # noqa: E402

project = "bigjko"
author = "the bigjko authors"
version = release = bigjko.__version__
project_copyright = author

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml"]
exclude_patterns = ["_build", "studies"]
highlight_language = "none"
nitpick_ignore_regex = [("py:.*", ".*")]  # links between pages are checked, types of torch and Python are no pages

myst_enable_extensions = ["dollarmath"]
myst_dmath_allow_space = False
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # mathematics.md and verdict.md begin as they like

# The notebook is kept without outputs and run here, whenever it has changed.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "bigjko"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

linkcheck_anchors = False
linkcheck_timeout = 20


def escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with `code`; reStructuredText would read |w| and *grid as its own."""
    for i, line in enumerate(lines):
        parts = re.split(r"(`[^`]+`)", line)
        for k, part in enumerate(parts):
            if k % 2:
                parts[k] = f"`{part}`"
            else:
                part = re.sub(r"(^\s*)-(?=[^\s])", r"\1\\-", part)
                parts[k] = re.sub(r"([|*])", r"\\\1", re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", part))
        lines[i] = "".join(parts)


def types(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """What napoleon made of types: a shape such as *grid is no emphasis, and "h: the spacing" no type."""
    if what == "property" and lines and lines[-1].startswith(":type: "):
        lines[:] = [f"{lines[-1][len(':type: ') :]}: {lines[0]}", *lines[1:-1]]
    for i, line in enumerate(lines):
        if line.startswith(":vartype "):
            lines[i] = re.sub(r"\b(jaxtyping|torch|bigjko\.stepper)\.", "", line).replace("*", r"\*")


def signature(app: Any, what: str, name: str, obj: Any, options: Any, text: str | None, returns: str | None) -> Any:
    """`<factory>` is no Python, and Sphinx then gives up on the whole signature."""
    return (None if text is None else text.replace("<factory>", "..."), returns)


def gather(app: Any) -> None:
    """What lies outside this folder and is a page, too."""
    (HERE / "gathered").mkdir(exist_ok=True)
    for path in [ROOT / "examples" / "notebook.ipynb"]:
        if path.exists():
            shutil.copy2(path, HERE / "gathered" / path.name)


def setup(app: Any) -> None:
    """Called by Sphinx. Napoleon reads a docstring at priority 500."""
    app.connect("autodoc-process-docstring", escape, priority=400)
    app.connect("autodoc-process-docstring", types, priority=600)
    app.connect("autodoc-process-signature", signature)
    app.connect("builder-inited", gather)
