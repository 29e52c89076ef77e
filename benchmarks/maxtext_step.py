"""Compile MaxText's training step for TPUs that are not here; runs in MaxText's environment, for benchmarks/maxtext_plan.py.

    PYTHON benchmarks/maxtext_step.py FOLDER model_name=qwen3-8b compile_topology=v5p-8 per_device_batch_size=4 ...

Writes FOLDER/program.txt (the optimized HLO, from XLA's dump) and FOLDER/facts.json: memory statistics, the mesh's axes and
the places of its devices on the torus, seconds, versions. Needs no TPU, network, tokenizer or data. Imports nothing of this
project.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "DECOUPLE_GCLOUD": "FALSE",
}


def main() -> None:
    """Replace the function of train_compile that compiles by one that also keeps what is needed, and run it."""
    os.environ.update(SETTINGS)
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    import jax
    import libtpu
    import maxtext
    from absl import app
    from maxtext.trainers.pre_train import train_compile
    from maxtext.utils import max_utils

    def compile_and_keep(
        function, inputs, named_inputs, mesh, in_shardings, out_shardings, static, donated, config, rules
    ):
        with jax.set_mesh(mesh), rules:
            step = jax.jit(
                function, in_shardings=in_shardings, out_shardings=out_shardings, static_argnums=static, donate_argnums=donated
            )  # fmt: skip
            lowered = step.lower(*inputs, **named_inputs)
        options = max_utils.parse_libtpu_flags_to_dict(config.compile_xla_flags)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as dump:
            compiled = lowered.compile(compiler_options=options | {"xla_dump_to": dump, "xla_dump_hlo_as_text": True})
            texts = sorted(Path(dump).glob("*after_optimizations.txt"), key=lambda file: file.stat().st_size)
            text = texts[-1].read_text(encoding="utf-8")
        memory = compiled.memory_analysis()
        facts = {
            "memory": {name: getattr(memory, name) for name in dir(memory) if name.endswith("_in_bytes")},
            "mesh": dict(mesh.shape),
            "devices": [(*device.coords, device.core_on_chip) for device in mesh.devices.reshape(-1)],
            "compile_s": time.perf_counter() - started,
            "arguments": arguments,
            "versions": {"maxtext": maxtext.__version__, "jax": jax.__version__, "libtpu": libtpu.__version__},
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "program.txt").write_text(text, encoding="utf-8")
        (folder / "facts.json").write_text(json.dumps(facts, default=str), encoding="utf-8")
        return compiled

    train_compile.jit_and_compile = compile_and_keep
    base = Path(maxtext.__file__).parent / "configs/base.yml"
    sys.argv = ["train_compile", str(base), *arguments]
    app.run(train_compile.main)


if __name__ == "__main__":
    main()
