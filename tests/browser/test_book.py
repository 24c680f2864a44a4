"""The built book in a browser: complete, typeset and searchable without a network."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from notebook_checks import EXERCISES, NOTEBOOKS

pytestmark = [pytest.mark.slow, pytest.mark.browser]
ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "build" / "book"
PAGES = sorted(
    path.relative_to(BOOK).as_posix()
    for path in BOOK.rglob("*.html")
    if path.parts[len(BOOK.parts)] not in ("_static", "_sources") and path.stem != "genindex"
)
WITH_FORMULAS = ["notebooks/02_baseline_sampling.html", "notebooks/04_ppo_run.html"]
BROKEN_PICTURES = """() => [...document.images]
    .filter(image => image.complete && image.naturalWidth === 0).map(image => image.src)"""
WIDE = "() => document.documentElement.scrollWidth - window.innerWidth"


def opened(watched, name: str, query: str = ""):
    watched.page.goto((BOOK / name).as_uri() + query)
    return watched.page


def test_the_book_has_been_built_with_everything_in_it():
    assert PAGES, "build it first: make book"
    stems = {path.removesuffix(".ipynb") for path in NOTEBOOKS}
    assert {f"notebooks/{stem}.html" for stem in stems} <= {*PAGES}
    assert {f"notebooks/exercises/{name[:-6]}.html" for name in EXERCISES} <= {*PAGES}
    assert {"index.html", "docs/study.html", "docs/teaching.html"} <= {*PAGES}
    assert {"api/rlhf_helpers.html", "api/rlhf_helpers.algorithms.html"} <= {*PAGES}


def test_every_page_is_whole(watched):
    """No error, nothing asked of the network, no picture missing, nothing wider than the window."""
    for name in PAGES:
        page = opened(watched, name)
        assert page.evaluate(BROKEN_PICTURES) == [], name
        assert page.evaluate(WIDE) <= 0, f"{name} is wider than the window"
        assert (watched.errors, watched.refused) == ([], []), name


def test_every_link_inside_the_book_leads_somewhere(watched):
    links = "() => [...document.querySelectorAll('a[href]')].map(link => link.href)"
    anchors = "() => [...document.querySelectorAll('[id]')].map(element => element.id)"
    names, wanted = {}, set()
    for name in PAGES:
        page = opened(watched, name)
        names[(BOOK / name).as_posix()] = {*page.evaluate(anchors)}
        wanted |= {(name, link) for link in page.evaluate(links) if link.startswith("file:")}
    assert len(wanted) > 500
    for name, link in sorted(wanted):
        parts = urlsplit(link)
        path = unquote(parts.path)
        assert Path(path).exists(), f"{name} links to {path}"
        if parts.fragment and path in names:
            assert unquote(parts.fragment) in names[path], f"{name} links to {link}"


@pytest.mark.parametrize("name", WITH_FORMULAS)
def test_formulas_are_typeset(watched, name):
    page = opened(watched, name)
    page.wait_for_selector("mjx-container svg")
    page.wait_for_function("MathJax.startup.promise.then(() => true)")
    assert page.locator("div.math mjx-container").count() >= 1
    for formula in page.locator(".math").all():
        assert formula.locator("mjx-container").count() == 1, formula.inner_text()
    assert page.locator("[data-mjx-error]").count() == 0


def test_what_a_prediction_hides_opens_on_a_click(watched):
    page = opened(watched, "notebooks/04_ppo_run.html")
    folds = page.locator("div.cell.tag_hide-output details")
    notebook = nbformat.read(ROOT / "notebooks" / "04_ppo_run.ipynb", as_version=4)
    assert folds.count() == sum("hide-output" in c.metadata.get("tags", []) for c in notebook.cells)
    assert folds.count() >= 3
    for fold in folds.all():
        inside = fold.locator("div.cell_output").first
        assert not inside.is_visible()
        fold.locator("summary").click()
        assert inside.is_visible()


@pytest.mark.parametrize(
    "word, page_found", [("whitened", "04_ppo_run"), ("bradley_terry_loss", "algorithms")]
)
def test_search_finds_a_word_without_a_network(watched, word, page_found):
    page = opened(watched, "search.html", f"?q={word}")
    found = page.locator("#search-results li a")
    found.first.wait_for()
    assert any(page_found in link.get_attribute("href") for link in found.all())
    assert (watched.errors, watched.refused) == ([], [])
