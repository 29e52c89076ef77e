"""All meshes of a number of devices, and the ones nearest to a mesh that does not work."""

import functools
import math
from collections.abc import Callable

from sharding import AXES, MeshConfig
from sharding.mesh import describe


def nearest_meshes(
    requested: MeshConfig, devices: int, works: Callable[[tuple[int, ...]], bool] = lambda sizes: True, limit: int = 3
) -> str:
    """Return a sentence that names the meshes nearest to the requested one (fewest doublings away).

    Args:
        requested: axis sizes; -1 is any size.
        devices: number of devices, all of which are used.
        works: whether a mesh with these axis sizes can be used.
        limit: how many to name.
    """
    requested_sizes = [getattr(requested, axis) for axis in AXES]

    def distance(sizes: tuple[int, ...]) -> tuple[float, int]:
        doublings = sum(
            abs(math.log2(size / target)) for size, target in zip(sizes, requested_sizes, strict=True) if target > 0
        )
        return doublings, -sizes[AXES.index("data")]  # of equals, the one with the cheapest traffic

    candidates = sorted((sizes for sizes in factorizations(devices, len(AXES)) if works(sizes)), key=distance)
    if not candidates:
        return f"No mesh of {devices} devices works."
    return "Nearest that work: " + "; ".join(describe(sizes) for sizes in candidates[:limit]) + "."


@functools.cache
def factorizations(number: int, parts: int) -> tuple[tuple[int, ...], ...]:
    """Return all ordered ways to write a number as a product of `parts` positive integers."""
    if parts == 1:
        return ((number,),)
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return tuple((d, *rest) for d in divisors for rest in factorizations(number // d, parts - 1))
