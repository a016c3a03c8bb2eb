"""The templates of all pages."""

from collections.abc import Callable
from typing import Any

import jinja2

from hgdpo_jax.pages import numbers


def render(template: str, picture: Callable[[Any], str], **values: Any) -> str:
    """A page that needs no other file: its template filled with `values`, whose images `picture` turns into data URIs.

    What is filled in is text, not markup, and a name that is not given is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hgdpo_jax.pages", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["picture"] = picture
    for function in (numbers.format_score, numbers.p_value, numbers.percent, numbers.signed):
        environment.filters[function.__name__] = function
    return environment.get_template(template).render(values)
