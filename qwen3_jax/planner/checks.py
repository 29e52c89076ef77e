"""Faults of a compiled training step: gathers of a whole stack of layers, and logits of all tokens at once."""

from __future__ import annotations

from qwen3_jax.planner.hlo import Module


def full_stack_gathers(module: Module, layers: int) -> list[str]:
    """Return the all-gathers whose result holds a parameter of all layers at once; a good program has none.

    Args:
        module: the compiled step.
        layers: length of the stack; the model should have no other dimension of this size.
    """
    return [
        f"{i.name} {shape.dtype}{list(shape.dims)} of {i.source}"
        for i in module.instructions()
        if i.opcode.removesuffix("-start") == "all-gather"
        for shape in i.shapes[-1:]
        if len(shape.dims) >= 3 and shape.dims[0] == layers
    ]


def full_logits(module: Module, vocabulary: int, tokens: int) -> list[str]:
    """Return the arrays that hold logits of all of a device's tokens at once; with a chunked loss there are none.

    Args:
        module: the compiled step.
        vocabulary: columns of the vocabulary on one device.
        tokens: tokens of one micro-batch on one device.
    """
    return [
        f"{i.name} {shape.dtype}{list(shape.dims)} of {i.source}"
        for i in module.instructions()
        for shape in i.shapes
        if vocabulary in shape.dims
        and shape.elements >= vocabulary * tokens
        and tokens in _products(shape.dims, vocabulary)
    ]


def _products(dims: tuple[int, ...], vocabulary: int) -> set[int]:
    """Products of neighbouring dimensions besides the vocabulary: [2, 512, V] may hold 1,024 tokens."""
    others = list(dims)
    others.remove(vocabulary)
    products = set()
    for start in range(len(others)):
        product = 1
        for side in others[start:]:
            product *= side
            products.add(product)
    return products
