"""What holds for every page of a report, asked of a browser."""

import re

_TABLES = "document.querySelectorAll('table:not([role=presentation])').length"
_TOO_WIDE = """[...document.querySelectorAll("*")]
    .filter(each => !each.closest(".scroll") && each.getBoundingClientRect().right > innerWidth + 1)
    .map(each => each.tagName + "." + each.className)"""
_CLIPPED = """[...document.querySelectorAll(".scroll")]
    .filter(each => each.scrollWidth > each.clientWidth + 1 || each.getBoundingClientRect().right > innerWidth + 1)
    .map(each => each.querySelector("table").className)"""


def assert_reads_well(browser, path, *, openable):
    """Fits every window, asks nobody for anything, prints all its tables, and enlarges what is clicked at."""
    for width, dark in ((320, True), (390, False), (390, True), (660, False), (820, False), (950, True), (1440, False)):
        window = browser.open(path, width=width, height=844, dark=dark)
        assert window.evaluate("document.documentElement.scrollWidth") == width
        assert [*window.evaluate(_TOO_WIDE), *window.evaluate(_CLIPPED)] == [], width
        window.close()

    page = browser.open(path)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not page.evaluate("document.querySelector('dialog').open")
    before = page.evaluate(f"document.querySelector({openable!r}).getBoundingClientRect().width")
    page.click(openable)
    assert page.evaluate("document.querySelector('dialog').open")
    assert page.evaluate("document.querySelector('dialog figure').getBoundingClientRect().width") > before
    page.click("dialog button")
    assert not page.evaluate("document.querySelector('dialog').open")
    elsewhere = [address for address in page.requests()[1:] if not address.startswith("data:")]
    assert page.requests()[0] == path.as_uri() and elsewhere == []
    page.close()

    # The width of A4 less the margins, in CSS pixels.
    paper = browser.open(path, width=718)
    paper.emulate("print")
    assert paper.evaluate(_CLIPPED) == []
    tables = paper.evaluate(_TABLES)
    # A tagged file names the structure of what was printed.
    assert tables and len(re.findall(rb"/S /Table\b", paper.pdf())) == tables
    paper.close()
