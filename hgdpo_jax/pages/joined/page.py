"""A report as one HTML page that needs no other file."""

import io

import markupsafe
import numpy as np
from etils import epath
from PIL import Image

from hgdpo_jax.pages.charts import curves_svg
from hgdpo_jax.pages.joined.document import Document
from hgdpo_jax.pages.pictures import data_uri
from hgdpo_jax.pages.templates import page_environment

# A grid has dozens of images.
_IMAGE_HEIGHT = 256


def as_page(document: Document) -> str:
    """The report with its charts and images."""
    environment = page_environment()
    environment.filters["picture"] = _picture
    charts = {
        # The markup comes from matplotlib and escapes what is written in it.
        section.title: [
            (chart, markupsafe.Markup(curves_svg(chart, f"{section.title}: {chart.title}"))) for chart in section.charts
        ]
        for section in document.sections
    }
    return environment.get_template("joined/joined.html.jinja").render(document=document, charts=charts)


def _picture(path: epath.Path) -> str:
    image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    return data_uri(np.asarray(image), _IMAGE_HEIGHT)
