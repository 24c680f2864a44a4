"""Sphinx's settings for the book; book/make_book.py prepares the pages and calls it."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

from common import MATHJAX, URL  # noqa: E402

project = "RLHF on one machine"
author = "its contributors"
copyright = "its contributors"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx_copybutton"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # by default from a content network; committed notebooks have no widgets
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]  # cells that begin with % or !
copybutton_selector = "div.highlight pre"

toc_object_entries = False  # each name has a heading already

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["static"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # a page from the disk may not fetch another one
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
mathjax_path = f"mathjax/{MATHJAX}"
mathjax3_config = {"options": {"enableMenu": False}}  # the menu would fetch parts of itself
html_theme_options = {
    "repository_url": URL,
    "use_repository_button": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the search field stands in the left column
}
