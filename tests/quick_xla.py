"""Flags with which XLA:CPU compiles tests quickly. Imports nothing of JAX."""

from importlib.metadata import version

OPTIMISATION = "--xla_backend_optimization_level=0"  # almost all the time is LLVM's
# A third of the time; jax 0.12 has other emitters, which are quicker.
EMITTERS = "--xla_cpu_use_fusion_emitters=false" if version("jaxlib") < "0.12" else ""
FLAGS = f"{OPTIMISATION} {EMITTERS}"
