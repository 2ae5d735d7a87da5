"""The documentation: ``make docs`` builds it into docs/_build/html."""

import re
import shutil
from importlib.metadata import version as installed_version
from importlib.resources import files
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.inspect import object_description

from jax_msssim.deep import DISTS_WEIGHTS

HERE = Path(__file__).parent

project = "jax_msssim"
author = "the jax_msssim authors"
release = version = installed_version("jax_msssim")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "jupyter_execute"]
nitpicky = True
# Named in signatures. What literal types allow is said in the text; the others are documented elsewhere: to link them
# would need the network.
ALIASES = (
    *("ArrayLike", "Padding", "Downsample", "Covariance", "Luminance", "Negative", "ChannelMean", "SpatialNdim"),
    *("ImplementationName", "Form"),
)
nitpick_ignore_regex = [("py:class", rf"{'|'.join(ALIASES)}|(jax|jaxlib|numpy|np|flax|collections|typing)\..*")]
autodoc_type_aliases = {name: name for name in ALIASES}

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks carry their outputs
nb_merge_streams = True
nb_render_markdown_format = "myst"  # with tables

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_param = False  # "a, b: ..." stays one entry
napoleon_custom_sections = ["Returns"]  # else what stands before its first colon is taken for a type
python_maximum_signature_line_length = 80  # one parameter a line

html_theme = "sphinx_book_theme"
MATHEMATICAL_FONT = files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf"  # not every machine has one
html_static_path = ["static", str(MATHEMATICAL_FONT)]
html_css_files = ["site.css"]
html_favicon = "static/icon.svg"
html_context = {"default_mode": "light"}
html_math_renderer = "mathml"  # which browsers draw themselves, without a script from elsewhere
html_title = f"jax_msssim {release}"
html_theme_options = {"home_page_in_toc": True, "show_navbar_depth": 1, "navbar_persistent": []}


def visit_math(translator, node):
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_math_block(translator, node):
    formulas = node.astext().split(r"\qquad")  # which are on lines of their own where there is little room
    mathml = "".join(tex2mathml(formula, as_block=True) for formula in formulas)
    translator.body.append(f'<div class="math">{mathml}</div>')
    raise nodes.SkipNode


WEIGHTS_IN_NUMBERS = object_description(DISTS_WEIGHTS)


def by_name(app, what, name, obj, options, signature, annotation):
    """The default of ``weights`` by its name, in place of 2950 numbers, and aliases in containers by theirs."""
    if signature:
        signature = signature.replace(WEIGHTS_IN_NUMBERS, "DISTS_WEIGHTS")
        signature = re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature)
    return signature, annotation


def setup(app):
    """Bring the notebooks under the source folder, where Sphinx looks for pages."""
    app.connect("autodoc-process-signature", by_name)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    (HERE / "notebooks").mkdir(exist_ok=True)
    for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):
        shutil.copy2(notebook, HERE / "notebooks")
