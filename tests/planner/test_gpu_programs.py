"""Programs compiled for an H100 and kept as text (`tests.helpers.gpu_programs`): arithmetic and traffic, counted by hand."""

from pathlib import Path

import pytest

from qwen3_jax.planner import costs, hlo, roofline
from qwen3_jax.planner.compile import GPU_HBM_SPACES
from qwen3_jax.planner.kernel_costs import pricer
from tests.helpers.gpu_programs import (
    BATCH,
    FOLDER,
    HEAD,
    HEADS,
    KV,
    LAYERS,
    LENGTH,
    PAGE,
    PAGES,
    ROWS,
    SLOTS,
    WIDTH,
)
from tests.planner.test_gpu_nodes import nodes_of

GPUS = 8


def counted(name: str, **price) -> costs.Program:
    (file,) = FOLDER.glob(f"{name}-*.hlo.txt")
    return costs.count(hlo.parse(file.read_text(), hbm_spaces=GPU_HBM_SPACES), pricer(**price))


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.hlo.txt")), ids=lambda file: file.name)
def test_every_program_is_understood(file):
    program = costs.count(hlo.parse(file.read_text(), hbm_spaces=GPU_HBM_SPACES), pricer())
    assert (program.unpriced, program.unread, program.unknown_loops) == ({}, {}, [])


def test_a_stack_of_products_over_eight_gpus():
    """Forward, once more for remat, both halves of the backward pass; weights gathered in bfloat16, then in float32."""
    program = counted("fsdp_step")
    assert program.flops == 4 * 2 * (ROWS // GPUS) * WIDTH * WIDTH * LAYERS
    sent = {}
    for one, times in program.collectives:
        sent[one.kind] = sent.get(one.kind, 0) + one.bytes * times
    assert sent == {
        "all-gather": LAYERS * WIDTH * WIDTH * (2 + 4) * 7 / 8,
        "reduce-scatter": LAYERS * WIDTH * WIDTH * 2 * 7 / 8,
    }


def test_slices_of_stacks_are_read_and_written_as_slices():
    """Of the stacked weights [L, 32, 256] a layer reads its own, and writes its own gradient."""
    program = counted("fsdp_step")
    bytes_of = {work.name: (work.bytes, times) for work, times in program.work}
    one_layer = WIDTH // GPUS * WIDTH * 4
    assert bytes_of["loop_dynamic_slice_fusion.1"] == (2 * one_layer + 4, LAYERS)  # and the index
    assert bytes_of["loop_dynamic_update_slice_fusion.1"] == (one_layer / 2 + 4 + one_layer, LAYERS)


def test_collectives_over_two_nodes_by_axis_and_network():
    """16 GPUs as data=4, tensor=4: `tensor` is within a node; two members of a `data` group are in each."""
    program = counted("collectives")
    assert [one.kind for one, _ in program.collectives] == [
        "all-to-all", "collective-permute", "all-reduce", "reduce-scatter",
    ]  # fmt: skip
    held = 64 * 256 * 4
    exchanged, shifted, summed, scattered = held * 3 / 4, held, 2 * held * 3 / 4, held * 3 / 4
    bound = roofline.bound(program, *nodes_of(2, 8, data=4, tensor=4))
    assert bound.ici_bytes == {"tensor": exchanged + scattered, "data": shifted / 2 + summed / 2}
    assert bound.dcn_axes == {"data": shifted / 2 + summed / 2}
    nvlink, card = 4.5e11, 5e10
    by_axis = {"tensor": (exchanged + scattered) / nvlink, "data": (shifted + summed / 2) / nvlink}
    assert bound.ici_s == {axis: pytest.approx(seconds) for axis, seconds in by_axis.items()}
    assert bound.dcn_s == pytest.approx((shifted + summed / 2) / card)  # a shift takes as long as those that cross


def test_both_ends_of_an_all_reduce_are_memory_traffic():
    """An all-reduce's start has its result alone, other starts their operands too."""
    bytes_of = {work.name: work.bytes for work, _ in counted("collectives").work}
    held = 64 * 256 * 4
    assert bytes_of["all-reduce-start"] == 2 * held
    assert bytes_of["all-to-all-start"] == 2 * held
    assert bytes_of["reduce-scatter-start"] == held + held / 4


def test_triton_attention_is_the_causal_half_of_all_pairs():
    """Scores and output, then seven products in the backward kernel, which computes the scores twice."""
    one_product = 2 * BATCH * HEADS * HEAD * LENGTH * LENGTH / 2
    assert counted("triton_attention").flops == (2 + 7) * one_product


def test_cudnn_attention_is_the_causal_half_of_all_pairs():
    """Scores and output, then five products."""
    one_product = 2 * BATCH * HEADS * HEAD * LENGTH * LENGTH / 2
    assert counted("cudnn_attention").flops == (2 + 5) * one_product


def test_paged_attention_reads_the_pages_of_its_rows_and_not_the_pool():
    program = counted("paged_decode", slots=SLOTS)
    padded = 16  # query heads of one key/value head, in the kernel's block
    rows = BATCH * KV
    assert program.flops == LAYERS * 4 * rows * padded * HEAD * SLOTS
    ((work, times),) = [item for item in program.work if item[0].flops]
    table = 64  # pages, after padding to 16 parts of 4
    queries, results = rows * padded * HEAD * 2, 16 * rows * padded * (HEAD * 2 + 4 + 4)
    keys_and_values = 2 * rows * SLOTS * HEAD * 2
    assert (work.bytes, times) == (keys_and_values + queries + 4 * rows * table + results, LAYERS)
    pool = 2 * PAGES * KV * PAGE * HEAD * 2
    assert keys_and_values < pool
    # Without the number of slots the table counts, as long as the kernel takes it.
    assert counted("paged_decode").flops == LAYERS * 4 * rows * padded * HEAD * table * PAGE


def test_products_by_cublas():
    """One with a bias and a batch of two; the scratch memory that they are given is not traffic."""
    program = counted("cublas")
    one = 2 * ROWS * WIDTH * 2 * WIDTH
    assert program.flops == 2 * one
    bytes_of = {work.name: work.bytes for work, _ in program.work}
    x, w, out, bias = ROWS * WIDTH * 2, WIDTH * 2 * WIDTH * 2, ROWS * 2 * WIDTH * 2, 2 * WIDTH * 2
    assert bytes_of["cublas-lt-matmul.2"] == x + w + bias + out
    assert bytes_of["custom-call.3"] == x + 2 * w + out


def test_the_texts_are_those_of_this_project():
    assert {file.name.split("-")[0] for file in FOLDER.glob("*.hlo.txt")} == {
        "collectives", "cublas", "cudnn_attention", "fsdp_step", "paged_decode", "triton_attention",
    }  # fmt: skip
    assert not [file for file in FOLDER.iterdir() if Path.cwd().as_posix() in file.read_text()]
