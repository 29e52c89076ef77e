"""A weight with a low-rank addition (LoRA: Hu et al. 2021, arXiv 2106.09685), which products take in a weight's place.

    w  ~  base + scaling * a b            y = x base + scaling * (x a) b

`linear` and `project` compute the right side, so that the sum is never formed and a quantised base is never unpacked for it.
`folded` forms the sum: for experts, the router, and an output projection that is trained.

Several adapters stand side by side along the rank, and each row of x names one or none:

    y = x base + ((x a) * mask) b          mask: 1 at the ranks of the row's adapter, else 0

So rows of different adapters share one product, and which one a row has is data. The cost grows with the sum of the ranks.

Shapes: e experts, d what a product sums over (one axis or two), r rank (of n adapters together), f the other axes.
"""

import jax
import jax.numpy as jnp
from flax import struct

from qwen3_jax.kernels.execution import ONE_DEVICE, Execution
from qwen3_jax.kernels.experts.stack import unstacked
from qwen3_jax.kernels.quantized import Weight, dequantize
from qwen3_jax.kernels.quantized import take_rows as take_plain_rows
from sharding.rules import LogicalAxes


@struct.dataclass
class LowRank:
    """A weight and its low-rank addition.

    Attributes:
        base: [E, D..., F...], without E for what is no expert; in its storage type, or quantised.
        a: [E, D..., R].
        b: [E, R, F...].
        scaling: float32 scalar.
        chosen: float32 [..., N], 1 at the adapter of each row of x, where N adapters of R / N ranks stand side by side; None
            for a single one.
    """

    base: Weight
    a: jax.Array
    b: jax.Array
    scaling: jax.Array
    chosen: jax.Array | None = None

    def masked(self, x_r: jax.Array) -> jax.Array:
        """Return a product with `a`, [..., R], with zeros at the ranks of other adapters than the row's."""
        if self.chosen is None:
            return x_r
        return x_r * jnp.repeat(self.chosen.astype(x_r.dtype), x_r.shape[-1] // self.chosen.shape[-1], axis=-1)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape


def split_equation(equation: str) -> tuple[str, str]:
    """Return the equations of the products with a and with b, of that with the weight: "btd,dnh->btnh" gives "btd,dr->btr"
    and "btr,rnh->btnh"."""
    inputs, result = equation.split("->")
    x, w = inputs.split(",")
    kept = "".join(letter for letter in w if letter in result)
    summed = "".join(letter for letter in w if letter not in result)
    rank = next(letter for letter in "rsuvz" if letter not in equation)
    rows = "".join(letter for letter in x if letter not in summed)
    return f"{x},{summed}{rank}->{rows}{rank}", f"{rows}{rank},{rank}{kept}->{result}"


def folded(w: Weight, dtype: jnp.dtype, execution: Execution, axes: LogicalAxes, experts: bool = False) -> jax.Array:
    """Return base + scaling * a b as an array of `dtype`, placed by its logical axes; the sums over the rank are float32."""
    if not isinstance(w, LowRank):
        return w
    assert w.chosen is None, "rows with adapters of their own have no common weight"
    lead, rank = int(experts), w.b.shape[int(experts)]
    count = w.a.shape[:lead]
    summed, kept = w.a.shape[lead:-1], w.b.shape[lead + 1 :]
    a = w.a.reshape(*count, -1, rank).astype(dtype)
    b = w.b.reshape(*count, rank, -1).astype(dtype)
    product = jnp.einsum("...dr,...rf->...df", a, b, preferred_element_type=jnp.float32) * w.scaling
    base = dequantize(unstacked(w.base), dtype)
    total = (base + product.reshape(*count, *summed, *kept)).astype(dtype)
    return execution.placement.constrain(total, axes)


def take_rows(w: Weight, index: jax.Array, dtype: jnp.dtype, execution: Execution = ONE_DEVICE) -> jax.Array:
    """Return rows of a table in `dtype`; of a quantised table only these rows are unpacked.

    Raises:
        ValueError: the table is quantised, and its scale is not per row.
    """
    if not isinstance(w, LowRank):
        return take_plain_rows(w, index, dtype, execution)
    a = w.masked(take_plain_rows(w.a, index, dtype, execution))
    addition = jnp.einsum("...r,rd->...d", a, w.b.astype(dtype), preferred_element_type=jnp.float32) * w.scaling
    return take_plain_rows(w.base, index, dtype, execution) + addition.astype(dtype)
