"""The templates of all pages."""

from collections.abc import Callable
from typing import Any

import jinja2

from hgdpo_jax.pages import numbers


def render(template: str, **values: Any) -> str:
    """A page that needs no other file: an HTML template filled with `values`, as text and not as markup.

    A name that is not given is an error. `contents` collects the titles of the page's sections.
    """
    environment = _environment(autoescape=True)
    environment.filters |= {name: getattr(numbers, name) for name in ("format_score", "p_value", "percent", "signed")}
    return environment.get_template(template).render(values, contents=[])


def render_text(template: str, escape: Callable[[str], str], **values: Any) -> str:
    """A text file: a template in which << name >> stands for a value, as `escape` writes it in this format."""
    # Braces are LaTeX's own.
    environment = _environment(finalize=escape, variable_start_string="<<", variable_end_string=">>")
    return environment.get_template(template).render(values)


def _environment(**options: Any) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("hgdpo_jax.pages", ""),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        **options,
    )
