"""A report as one HTML page that needs no other file."""

from hgdpo_jax.pages.charts import curves_svg
from hgdpo_jax.pages.joined.document import Document
from hgdpo_jax.pages.pictures import data_uri, read_image
from hgdpo_jax.pages.templates import render

# A grid has dozens of images.
_IMAGE_HEIGHT = 256


def as_page(document: Document) -> str:
    """The report with its charts and images."""
    return render(
        "joined/joined.html.jinja",
        picture=lambda path: data_uri(read_image(path), _IMAGE_HEIGHT),
        title=document.title,
        subtitle=document.subtitle,
        document=document,
        charts={
            section.title: [(chart, curves_svg(chart, f"{section.title}: {chart.title}")) for chart in section.charts]
            for section in document.sections
        },
        settings_title="Settings that all runs share",
        settings=document.settings,
    )
