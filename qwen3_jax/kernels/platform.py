"""Facts about the platform that other rooms ask for by purpose, never by name."""

import jax


def prefers_unrolled_decoding() -> bool:
    """Whether decoding is faster with one array per layer than with stacked layers.

    True on CPU, where XLA copies each layer's slice out of the stack: a decode step then runs at about half speed.
    """
    return jax.default_backend() == "cpu"


def default_compute_dtype() -> str:
    """The data type to run a model in when the user names none: XLA:CPU's bf16 matrix-vector product is many times
    slower per byte than fp32, accelerators are built for bf16."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
