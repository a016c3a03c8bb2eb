"""What the pages of reports share: how their templates are found and filled."""

import jinja2


def page_environment() -> jinja2.Environment:
    """The templates of all pages; what is filled in is text, not markup, and a name that is not given is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("hgdpo_jax.pages", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
