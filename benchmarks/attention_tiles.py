"""The tiles of the three Triton attention kernels, timed one by one on an NVIDIA GPU, and cuDNN beside them.

    python -m benchmarks.attention_tiles                  # 16 query and 8 key/value heads of 128, 4 rows of 4,096 tokens
    python -m benchmarks.attention_tiles --heads 32 8 --head-size 128 --rows 2 --length 8192

A tile is held x streamed rows, stages, warps (`qwen3_jax/kernels/attention/triton.py`). Each is checked against the first of
its kernel. Rows of one document, and rows of seven documents. TFLOP/s count the visible half of the scores.
"""

import argparse
import concurrent.futures
import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import show
from qwen3_jax.kernels import Execution, Kernels, attention
from qwen3_jax.kernels.attention import triton
from qwen3_jax.kernels.attention.triton import Mask, Tile

SHAPES = ((64, 32), (64, 64), (64, 128), (128, 32), (128, 64), (128, 128))
PRODUCTS = {"forward": 2, "dq": 3, "dkv": 4}  # of the size of the scores x head size


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4, help="rows of a batch (default: %(default)s)")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a row (default: %(default)s)")
    parser.add_argument(
        "--heads", type=int, nargs=2, default=[16, 8], help="query and key/value heads (default: 16 8)", metavar="N"
    )
    parser.add_argument("--head-size", type=int, default=128, help="(default: %(default)s)")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3, 4], help="(default: 1 2 3 4)")
    parser.add_argument("--workers", type=int, default=8, help="programs compiled at a time (default: %(default)s)")
    return parser.parse_args()


def seconds(function: Callable, arrays: tuple) -> float:
    """Return the median time of a call, of ten groups of four calls."""
    jax.block_until_ready(function(*arrays))
    groups = []
    for _ in range(10):
        started = time.perf_counter()
        jax.block_until_ready([function(*arrays) for _ in range(4)])
        groups.append((time.perf_counter() - started) / 4)
    return statistics.median(groups)


class Case:
    """Random inputs, and each kernel with a tile as a function of them."""

    def __init__(self, options: argparse.Namespace, packed: bool):
        random, (n, k) = np.random.default_rng(0), options.heads
        b, t, h = options.rows, options.length, options.head_size
        self.q, self.w = (jnp.asarray(random.normal(size=(b, t, n, h)), jnp.bfloat16) for _ in range(2))
        self.k, self.v = (jnp.asarray(random.normal(size=(b, k, t, h)), jnp.bfloat16) for _ in range(2))
        cuts = np.sort(random.integers(1, t, (b, 6 if packed else 0)), axis=1)
        self.segments = jnp.asarray(1 + (np.arange(t)[None, :, None] >= cuts[:, None]).sum(-1), jnp.int32)
        self.flops = 2 * b * n * t * t * h / 2
        self.interpret = jax.default_backend() != "gpu"
        self.blocks = triton.choose_blocks(h, 232_448)
        self.mask = Mask(jnp.arange(t), self.segments, self.segments)
        self.saved = jax.jit(lambda: triton._forward(self.q, self.k, self.v, self.mask, self.blocks, self.interpret))()

    def compiled(self, kernel: str, tile: Tile) -> tuple[Callable, tuple]:
        """Return one kernel's program and its arguments."""
        blocks = dataclasses.replace(self.blocks, **{kernel: tile})
        if kernel == "forward":
            arrays = self.q, self.k, self.v
            return jax.jit(lambda *a: triton._forward(*a, self.mask, blocks, self.interpret)).lower(
                *arrays
            ).compile(), arrays

        def back(q, k, v, w, out, logsumexp):
            dq, *dkv, _ = triton._backward(blocks, self.interpret, (q, k, v, self.mask, out, logsumexp), w)
            return dq if kernel == "dq" else dkv  # XLA removes the other kernel

        arrays = self.q, self.k, self.v, self.w, *self.saved
        return jax.jit(back).lower(*arrays).compile(), arrays


def measure(options: argparse.Namespace, case: Case, label: str) -> None:
    """Time every tile of every kernel; print a table, fastest first."""
    jobs = [
        (kernel, Tile(held, streamed, stages, warps))
        for kernel in PRODUCTS
        for held, streamed in SHAPES
        for stages in options.stages
        for warps in (4, 8)
    ]

    def make(job):
        try:
            return case.compiled(*job)
        except Exception as error:  # too much shared memory, which is what the sweep is to find
            return str(error).split("\n")[0][:60]

    with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
        programs = list(pool.map(make, jobs))
    first, rows = {}, []
    for (kernel, tile), made in zip(jobs, programs, strict=True):
        name = f"{tile.held} x {tile.streamed}, {tile.stages} stages, {tile.warps} warps"
        if isinstance(made, str):
            continue
        results = [np.asarray(x, np.float32) for x in jax.tree.leaves(made[0](*made[1]))]
        same = first.setdefault(kernel, results)
        apart = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(results, same, strict=True))
        if not apart <= 0.02:
            raise SystemExit(f"{kernel} with {name} differs by {apart:.1%} of the largest value.")
        taken = seconds(*made)
        rate = case.flops * PRODUCTS[kernel] / taken / 1e12
        chosen = "chosen" if tile == getattr(case.blocks, kernel) else ""
        rows.append((kernel, taken, [kernel, name, f"{taken * 1e3:.3f}", f"{rate:,.0f}", chosen]))
    rows.sort(key=lambda row: (list(PRODUCTS).index(row[0]), row[1]))
    show(label, ["kernel", "tile", "ms", "TFLOP/s", ""], [cells for *_, cells in rows])


def beside_cudnn(case: Case) -> None:
    """Time whole attention, forward and with its gradient, by both implementations."""
    rows = []
    for name in ("triton", "cudnn"):

        def forward(q, k, v, name=name):
            segments = case.segments if name == "triton" else None
            return attention(q, k, v, segments, Execution(kernels=Kernels(attention=name)))

        both = jax.jit(lambda q, k, v, w, forward=forward: jax.vjp(forward, q, k, v)[1](w))
        one, two = seconds(jax.jit(forward), (case.q, case.k, case.v)), seconds(both, (case.q, case.k, case.v, case.w))
        rows.append([name, f"{one * 1e3:.3f}", f"{two * 1e3:.3f}", f"{case.flops * 7 / two / 1e12:,.0f}"])
    show("attention", ["implementation", "forward, ms", "and gradient, ms", "TFLOP/s"], rows)


def main() -> None:
    """Measure and print."""
    options = parse()
    for packed, label in ((False, "rows of one document"), (True, "rows of seven documents")):
        case = Case(options, packed)
        measure(options, case, label)
        if not packed and not case.interpret:
            beside_cudnn(case)


if __name__ == "__main__":
    main()
