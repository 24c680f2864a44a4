"""The built slides in a browser: every slide fits the screen, and nothing is missing."""

from pathlib import Path

import pytest
from notebook_checks import NOTEBOOKS

pytestmark = [pytest.mark.slow, pytest.mark.browser]
SLIDES = Path(__file__).resolve().parents[2] / "build" / "slides"
SMALLEST = 0.7  # of the size that a text should have; 0.7 of 25 pixels is 17
# What of the slide in sight lies outside the window, or is cut off inside its own box.
SLIDE = """() => {
    const slide = Reveal.getCurrentSlide();
    const shown = [...slide.querySelectorAll('pre, table, img, p, li, h1, h2, h3')];
    const outside = shown.filter(element => {
        const box = element.getBoundingClientRect();
        return box.right > innerWidth + 1 || box.bottom > innerHeight + 1 || box.left < 0;
    });
    const cut = [...slide.querySelectorAll('pre')].filter(
        element => element.scrollWidth > element.clientWidth + 2);
    return {
        text: slide.innerText.slice(0, 60),
        outside: outside.map(element => element.outerHTML.slice(0, 200)),
        cut: cut.map(element => element.textContent.slice(0, 200)),
        scale: +slide.dataset.scale,
        blank: slide.innerText.trim() === '' && !slide.querySelector('img'),
    };
}"""


def opened(watched, name: str):
    watched.page.goto((SLIDES / "notebooks" / name).with_suffix(".html").as_uri())
    watched.page.wait_for_function("window.Reveal && Reveal.isReady()")
    return watched.page


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_slide_fits_the_screen(watched, name):
    page = opened(watched, name)
    count = page.evaluate("Reveal.getTotalSlides()")
    assert count >= 15
    for number in range(count):
        slide = page.evaluate(SLIDE)
        assert slide["outside"] == slide["cut"] == [], slide
        assert slide["scale"] >= SMALLEST, slide
        assert not slide["blank"], number
        page.evaluate("Reveal.next()")
    assert page.evaluate("Reveal.isLastSlide()")
    broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    assert page.evaluate(broken) == []
    assert (watched.errors, watched.refused) == ([], [])


def test_the_check_sees_what_does_not_fit(watched):
    page = opened(watched, "01_setup.ipynb")
    page.evaluate("""() => {
        const slide = Reveal.getCurrentSlide();
        slide.insertAdjacentHTML('beforeend', '<p>more</p>'.repeat(20));
        const line = 'x'.repeat(300);
        slide.insertAdjacentHTML('beforeend', `<pre style="overflow: auto">${line}</pre>`);
    }""")
    slide = page.evaluate(SLIDE)
    assert slide["outside"] and slide["cut"]


def test_formulas_are_typeset_and_no_dollar_sign_is_left(watched):
    page = opened(watched, "04_ppo_run.ipynb")
    assert page.locator("mjx-container svg").count() > 10
    assert page.locator("[data-mjx-error]").count() == 0
    prose = page.locator(".jp-MarkdownOutput").evaluate_all("all => all.map(e => e.textContent)")
    assert not [text for text in prose if "$" in text]


def test_an_answer_comes_after_the_slide_with_its_question(watched):
    page = opened(watched, "03_lora_parameter_inspection.ipynb")
    slides = page.evaluate("Reveal.getSlides().map(slide => slide.innerText)")
    asked = [i for i, text in enumerate(slides) if "Predict." in text]
    assert len(asked) >= 2
    for number in asked:
        question = slides[number].partition("Predict.")[2]
        assert "Answer" not in question.replace('print("Answer:")', "")
        assert "Answer" in slides[number + 1]


def test_the_first_page_leads_to_every_deck(watched):
    watched.page.goto((SLIDES / "index.html").as_uri())
    links = watched.page.locator("a").evaluate_all("all => all.map(link => link.href)")
    assert [Path(link).stem for link in links] == [Path(name).stem for name in NOTEBOOKS]
