"""Flags with which XLA:CPU compiles tests quickly. Imports nothing of JAX."""

from importlib.metadata import version

OPTIMISATION = "--xla_backend_optimization_level=0"  # almost all the time is LLVM's
# A third of the time; jax 0.12 has other emitters, which are quicker.
EMITTERS = "--xla_cpu_use_fusion_emitters=false" if version("jaxlib") < "0.12" else ""
# Eight devices on two busy cores may wait long for each other; after 40 s XLA ends the process.
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
SERIAL = "--xla_cpu_parallel_codegen_split_count=1"  # parts compile in parallel, for an eighth more CPU time together
CPU_ALONE = f"{PATIENCE} {SERIAL} {EMITTERS}"  # what libtpu does not know
FLAGS = f"{OPTIMISATION} {CPU_ALONE}"
