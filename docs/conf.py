"""The documentation: ``make docs`` builds it into docs/_build/html."""

import re
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path

from jax.typing import ArrayLike
from sphinx.util.typing import stringify_annotation

HERE = Path(__file__).parent

project = "jax_msssim"
author = "the jax_msssim authors"
release = version = installed_version("jax_msssim")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx_design"]
exclude_patterns = ["_build", "jupyter_execute"]
nitpicky = True
# Named in signatures, documented elsewhere: to link them would need the network.
nitpick_ignore_regex = [("py:class", r"ArrayLike|(jax|jaxlib|numpy|flax|collections|typing)\..*")]

myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks carry their outputs

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_param = False  # "a, b: ..." stays one entry
napoleon_custom_sections = ["Returns"]  # else what stands before its first colon is taken for a type
python_maximum_signature_line_length = 80  # one parameter a line

html_theme = "sphinx_book_theme"
html_title = f"jax_msssim {release}"
html_theme_options = {"home_page_in_toc": True, "show_navbar_depth": 1, "navbar_persistent": []}

ARRAY_LIKE = stringify_annotation(ArrayLike, "smart")


def readable_signature(app, what, name, obj, options, signature, returns):
    """The names that the source uses: ``ArrayLike``, and no type for ``**options``, which the text describes."""
    if signature:
        signature = re.sub(r"(\*\*\w+): ~?[\w.]+\[.*?\]", r"\1", signature.replace(ARRAY_LIKE, "ArrayLike"))
    return signature, returns


def setup(app):
    """Bring the notebooks under the source folder, where Sphinx looks for pages."""
    app.connect("autodoc-process-signature", readable_signature)
    (HERE / "notebooks").mkdir(exist_ok=True)
    for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):
        shutil.copy2(notebook, HERE / "notebooks")
