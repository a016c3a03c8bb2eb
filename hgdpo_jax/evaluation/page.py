"""What the pages of reports share: how their templates are found and filled."""

import jinja2


def page_environment(*packages: str) -> jinja2.Environment:
    """Templates of these packages, and of evaluations, whose style and script all share.

    What is filled in is text, not markup, and a name that is not given is an error.
    """
    loaders = [jinja2.PackageLoader(package, "") for package in (*packages, "hgdpo_jax.evaluation")]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
