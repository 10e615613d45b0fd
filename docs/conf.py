"""The documentation site, built by Sphinx from these pages and the docstrings of the package.

`make docs` builds it into build/docs, with warnings as errors. The pages are plain Markdown, to be
read on GitHub as well. What a site needs besides is made here:

- The front page is README.md, and its list is the only list of pages: the sidebar is made of it.
- Links that leave this directory, such as ../CONTRIBUTING.md, lead to the file on GitHub.
- Types of arrays are shown as they are written: Float[Array, "batch time"].
"""

import pathlib
import re

from flax import nnx
from jaxtyping import PRNGKeyArray
from sphinx.domains.python import PyObject
from sphinx.util import inspect
from sphinx.util.typing import stringify_annotation

import pf_jax

DOCS = pathlib.Path(__file__).parent
REPOSITORY = "https://github.com/OWNER/pf_jax"

project = "pf_jax"
version = release = pf_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["README.md"]  # It comes in as index.
highlight_language = "text"  # Of code that does not say what it is.
default_role = "py:obj"  # In docstrings `name` is a link where it is documented, and else code.

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_allow_space = False  # US$ 3 and US$ 4 are no mathematics, here as on GitHub.
myst_heading_anchors = 3

autoclass_content = "both"
autodoc_member_order = "groupwise"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_attr_annotations = False  # Types of fields stand in what the class takes.
napoleon_use_ivar = True  # The attributes of a class are one list, not an entry each.

html_theme = "furo"
html_title = "pf_jax"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_copy_source = False

linkcheck_ignore = [re.escape(REPOSITORY)]  # Until there is such a place.
linkcheck_retries = 3


def read_source(app, docname, source):
    """Makes a page of the site of a page of Markdown."""
    directory = DOCS / pathlib.Path(docname).parent
    text = source[0]
    if docname == "index":
        app.env.note_dependency(str(DOCS / "README.md"))
        text = (DOCS / "README.md").read_text()
    if docname in ("index", "api/index"):
        text += contents(text)

    def out(link):
        path = (directory / link[1]).resolve().relative_to(DOCS.parent)
        if not (DOCS.parent / path).exists():
            raise FileNotFoundError(f"{docname} links to {path}, which does not exist.")
        return f"]({REPOSITORY}/blob/main/{path}{link[2]})"

    source[0] = re.sub(r"\]\((\.\./[^)#\s]+)(#?[^)\s]*)\)", out, text)


def contents(text):
    """The sidebar's entries: what the items of a list of pages begin with, under their headings."""
    trees = []
    for heading, section in re.findall(r"^##? (.*)\n([^#]*)", text, re.M):
        pages = re.findall(r"^- \[([^\]]+)\]\(([\w/]+)\.md\)", section, re.M)
        entries = "\n".join(f"{title} <{page}>" for title, page in pages)
        if pages:
            trees.append(f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{entries}\n```\n")
    return "".join(trees)


_KEY = stringify_annotation(PRNGKeyArray, "smart")


def write_types(app, what, name, obj, options, signature, returned):
    """Names types of arrays and keys as the code does; what classes take is what __init__ does."""
    if what == "class" and isinstance(obj, type) and issubclass(obj, nnx.Module):
        own = inspect.signature(obj.__init__, bound_method=True)
        signature = inspect.stringify_signature(own, unqualified_typehints=True)

    def short(text):
        text = (text or "").replace(_KEY, "PRNGKeyArray")
        return re.sub(r"~?\bjax[\w.]*\.Array\b", "Array", text) or None

    return short(signature), short(returned)


def is_of_namedtuple(app, what, name, obj, skip, options):
    """Leaves out "Alias for field number 0": fields are in the list of attributes."""
    return True if str(obj.__doc__).startswith("Alias for field number") else None


def strip_namedtuple(app, what, name, obj, options, lines):
    """Takes out what the constructors of named tuples say of themselves."""
    lines[:] = [line for line in lines if not line.startswith("Create new instance of ")]


def setup(app):
    """Called by Sphinx."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # Sphinx says Variables.
    app.connect("source-read", read_source)
    app.connect("autodoc-process-signature", write_types)
    app.connect("autodoc-skip-member", is_of_namedtuple)
    app.connect("autodoc-process-docstring", strip_namedtuple)
