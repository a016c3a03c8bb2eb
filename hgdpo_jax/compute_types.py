"""The types that networks compute in."""

from hgdpo_jax.errors import UserError

COMPUTE_TYPES = ("bfloat16", "float32")


def require_compute_type(dtype: str, name: str = "dtype") -> str:
    """The type itself; raises UserError, which calls it `name`, for any but those above."""
    if dtype in COMPUTE_TYPES:
        return dtype
    reason = " (numbers above 65,504 overflow, and gradients vanish without loss scaling)" if dtype == "float16" else ""
    raise UserError(f"{name} is {str(dtype)!r}{reason}: expected {' or '.join(map(repr, COMPUTE_TYPES))}")
