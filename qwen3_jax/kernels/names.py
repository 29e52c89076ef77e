"""Names of values that a policy of `jax.checkpoint` may keep for the backward pass (see model/layer_loop.py)."""

GATE = "gate"  # the product of an MLP's gate; of experts whose gate and up are one product, both
