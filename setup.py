"""Which packages there are; all else stands in pyproject.toml, which cannot say this.

configs/ stands at the top of the clone, and in the wheel within the package.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["hgdpo_jax", "hgdpo_jax.*"]), "hgdpo_jax.configs"],
    package_dir={"hgdpo_jax.configs": "configs"},
)
