"""What a training or decode step would take on TPUs or GPUs that are not present: memory, traffic and a bound on speed.

    >>> from qwen3_jax import planner
    >>> slice = planner.topology("v5p:8x8x8")
    >>> slice.chips, slice.chip.hbm_gib
    (512, 95)
    >>> mesh = planner.topology_mesh(slice, sharding.MeshConfig(data=64, tensor=8))
    >>> print(planner.plan_training(config, slice).text())              # as `train.py --plan v5p:8x8x8`

From bottom to top: `hlo`, `trip_counts` and `replica_groups` parse a compiled program; `costs` turns it into a `program` of
work and collectives, with `operations`, `formulas` and `kernel_costs`; `topologies` describes TPU slices, and with `gpu_nodes`
GPUs; `networks` and `roofline` put times to a program; `compile` does all of this for a lowered program. `training_step` and
`decode_step` say what is lowered and return a `Plan`; `reinforcement` and `distillation` have those of each phase; `search` and
`decode_search` compare plans. Names are imported on first use.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from qwen3_jax.planner.decode_step import plan_decoding
    from qwen3_jax.planner.distillation import plan_distillation
    from qwen3_jax.planner.plan import Plan
    from qwen3_jax.planner.reinforcement import plan_reinforcement
    from qwen3_jax.planner.topologies import Topology, topology, topology_mesh
    from qwen3_jax.planner.training_step import plan_training

__all__ = [
    "Plan", "Topology", "plan_decoding", "plan_distillation", "plan_reinforcement", "plan_training", "topology",
    "topology_mesh",
]  # fmt: skip
