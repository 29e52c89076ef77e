"""Programs compiled for an H100 and kept as text (`tests.helpers.gpu_programs`): arithmetic and traffic, counted by hand."""

import pytest

from qwen3_jax.planner import costs, hlo, roofline
from qwen3_jax.planner.compile import GPU_HBM_SPACES
from qwen3_jax.planner.kernel_costs import pricer
from tests.helpers.gpu_programs import (
    BATCH,
    EXPERT_ROWS,
    EXPERT_WIDTH,
    EXPERTS,
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


@pytest.mark.parametrize("name", ["triton_attention", "jax_attention"])
def test_triton_attention_is_the_causal_half_of_all_pairs(name):
    """Scores and output; then three products for the queries and four for the keys, which both compute the scores again."""
    one_product = 2 * BATCH * HEADS * HEAD * LENGTH * LENGTH / 2
    assert counted(name).flops == (2 + 3 + 4) * one_product


def test_cudnn_attention_is_the_causal_half_of_all_pairs():
    """Scores and output, then five products."""
    one_product = 2 * BATCH * HEADS * HEAD * LENGTH * LENGTH / 2
    assert counted("cudnn_attention").flops == (2 + 5) * one_product


def test_paged_attention_reads_the_pages_of_its_rows_and_not_the_pool():
    """In a loop over layers, whose pages lie one after another in one pool."""
    program = counted("paged_decode", slots=SLOTS)
    rows, queries = BATCH * KV, HEADS // KV  # of each row and head of keys
    assert program.flops == LAYERS * 4 * rows * queries * HEAD * SLOTS
    ((work, times),) = [item for item in program.work if item[0].flops]
    keys_and_values = 2 * rows * SLOTS * HEAD * 2
    parts, table = 64, BATCH * SLOTS // PAGE
    others = rows * queries * HEAD * 2 + 4 * table + parts * rows * queries * (HEAD + 2) * 4
    assert (work.bytes, times) == (keys_and_values + others, LAYERS)
    pool = 2 * LAYERS * PAGES * KV * PAGE * HEAD * 2
    assert keys_and_values < pool


def test_paged_attention_of_jax_counts_the_slots_in_use():
    """Its table has room for 64 pages, which count where the number of slots is not known; a block has 16 query heads."""
    rows, block, table = BATCH * KV, 16, 64
    assert counted("jax_paged_decode", slots=SLOTS).flops == 4 * rows * block * HEAD * SLOTS
    assert counted("jax_paged_decode").flops == 4 * rows * block * HEAD * table * PAGE


def test_experts_multiply_the_rows_that_reach_them():
    """Three products forward, six backward, of 256 rows of 2 experts a token; with balanced routing over 2 devices, half."""
    one = 2 * EXPERT_ROWS * WIDTH * EXPERT_WIDTH
    assert counted("experts").flops == 9 * one
    halved = counted("experts", expert_rows=EXPERT_ROWS / 2, experts=EXPERTS)
    assert halved.flops == 9 * one / 2
    r, d, f, weight = EXPERT_ROWS / 2, WIDTH * 2, EXPERT_WIDTH * 2, EXPERTS * WIDTH * EXPERT_WIDTH * 2
    by_hand = [
        r * (d + 3 * f) + 2 * weight,  # gate and up: tokens, both products and the activation
        r * (f + d) + weight,  # down
        r * (d + f) + weight,  # the activation's gradient
        r * (2 * f + d) + 2 * weight,  # the rows' gradient, of both
        *3 * [r * (d + f) + weight],  # the weights' gradients
    ]
    for work, expected in zip(sorted(w.bytes for w, _ in halved.work if w.flops), sorted(by_hand), strict=True):
        assert 0 <= work - expected < 4096, "the rows' tokens and the tables of tiles are small"
    two = counted("experts", expert_rows=2, experts=EXPERTS)
    products = [w.bytes for w, _ in two.work if w.flops == 2 * 2 * WIDTH * EXPERT_WIDTH and w.bytes < weight]
    assert len(products) == 2, "down, and the activation's gradient; the gradients of weights are written whole"
    for read in products:
        assert 0 <= read - 2 * (d + f) - weight / 2 < 4096, "of four experts two rows reach two at most"


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
        "collectives", "cublas", "cudnn_attention", "experts", "fsdp_step", "jax_attention", "jax_paged_decode", "paged_decode",
        "triton_attention",
    }  # fmt: skip
    assert not [file for file in FOLDER.iterdir() if "/work/" in file.read_text()]
