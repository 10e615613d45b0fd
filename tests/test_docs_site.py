"""Builds the documentation site: no warnings, all public names, and no link leads astray."""

import html.parser
import importlib
import pathlib
import types
import urllib.parse
import zlib

import pytest
from sphinx.cmd.build import build_main

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PACKAGES = {"pf_jax"} | {f"pf_jax.{page.stem}" for page in (DOCS / "api").glob("[a-z]*.md")}
PACKAGES -= {"pf_jax.index"}


class Page(html.parser.HTMLParser):
    """What there is in a page to link to, and what it links to."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links = {""}, set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        self.links |= {attrs[name] for name in ("href", "src") if attrs.get(name)}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site's directory."""
    place = tmp_path_factory.mktemp("site")
    warnings = place / "warnings"
    arguments = ["-q", "-W", "--keep-going", "-b", "html", "-d", str(place / "read")]
    failed = build_main([*arguments, "-w", str(warnings), str(DOCS), str(place / "html")])
    assert not failed, warnings.read_text()
    return place / "html"


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text()) for path in site.rglob("*.html")}


def targets(path, page):
    """The files and anchors of the site that a page links to."""
    for link in page.links:
        scheme, host, to, _, anchor = urllib.parse.urlsplit(link)
        if not scheme and not host:
            file = (path.parent / urllib.parse.unquote(to)).resolve() if to else path
            yield link, file, urllib.parse.unquote(anchor)


def test_every_link_and_anchor_exists(pages):
    number, lost = 0, []
    for path, page in pages.items():
        for link, file, anchor in targets(path, page):
            number += 1
            if not file.is_file() or (file in pages and anchor not in pages[file].anchors):
                lost.append(f"{path.name}: {link}")
    assert number > 1_000
    assert not lost


def test_every_page_is_reached_from_the_first_by_its_text_or_sidebar(site, pages):
    reached, fresh = set(), {site / "index.html"}
    while fresh:
        reached |= fresh
        fresh = {file for path in fresh for _, file, _ in targets(path, pages[path])}
        fresh = (fresh & set(pages)) - reached
    sources = {path.relative_to(DOCS) for path in DOCS.rglob("*.md")} - {pathlib.Path("README.md")}
    assert len(sources) > 20
    assert {site / path.with_suffix(".html") for path in sources} <= reached


def test_every_public_name_is_in_the_reference(site):
    listed = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    listed = {line.split(" ")[0] for line in listed.splitlines()}
    assert len(PACKAGES) == 8
    for package in PACKAGES:
        module = importlib.import_module(package)
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and not isinstance(value, types.ModuleType)
        ]
        assert len(names) > 3
        assert {f"{package}.{name}" for name in names} <= listed


def test_types_of_arrays_are_shown_as_they_are_written(site):
    texts = [path.read_text() for path in (site / "api").glob("*.html")]
    assert len(texts) == len(PACKAGES)
    assert not any("jaxlib" in text or "UInt32[" in text for text in texts)
    assert any("PRNGKeyArray" in text for text in texts)
    assert not any("Alias for field" in text or "Create new instance" in text for text in texts)


def test_mathematics_is_left_to_mathjax_and_prices_are_not(site):
    assert 'class="math notranslate' in (site / "design.html").read_text()
    assert 'class="math notranslate' not in (site / "planning.html").read_text()
