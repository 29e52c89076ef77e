"""What the HLO reader does not know is an error or a named line of the report, never left out: whole kinds, on short texts."""

import pytest

from qwen3_jax.planner import costs, hlo
from qwen3_jax.planner.compile import out_of_hbm

UNKNOWN = """HloModule m

ENTRY %main (a: f32[8,8]) -> f32[8,8] {{
  %a = f32[8,8]{{1,0}} parameter(0)
  {line}
  ROOT %r = f32[8,8]{{1,0}} negate(%a)
}}
"""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("%x = f32[8,8]{1,0} negate(%b)", "x of main reads 'b', which is not there"),
        ("%x = f32[8,8]{1,0} negate(%a#1)", "x of main reads 'a#1', which is not there"),
        ("%x = q77[8,8]{1,0} negate(%a)", "the data type 'q77' is not known"),
        ("%x = f32[8,?]{1,0} negate(%a)", "is not known"),
        ("%x = f32[8,8]{1,0} negate(a)", "the operands of .* have no names"),
        ('%"x y" = f32[8,8]{1,0} negate(%a)', "is no instruction"),
        ("schedule: x, y", "the line '  schedule: x, y' is no instruction"),
        ("%x = f32[8,8]{1,0} fusion(%a), kind=kLoop, calls=%gone", "calls the computation 'gone', which is not there"),
        (
            "%x = f32[8,8]{1,0} all-reduce(%a), channel_id=1, to_apply=%gone",
            "'gone', which is not there|no replica groups",
        ),
        ("%x = f32[8,8]{1,0} collective-permute(%a), channel_id=1", "no source_target_pairs"),
        ("%x = f32[8,8]{1,0} while(%a), condition=%gone, body=%gone", "'gone', which is not there"),
    ],
)
def test_what_is_not_understood_is_an_error(line, words):
    """A line, a name, a type or a computation that is dropped would make a figure too small."""
    with pytest.raises(hlo.UnreadableProgram, match=words):
        costs.count(hlo.parse(UNKNOWN.format(line=line)))


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ('%x = f32[8,8]{1,0} custom-call(%a), custom_call_target="new_library_gemm"', "new_library_gemm"),
        ("%x = f32[8,8]{1,0} cholesky(%a), lower=true", "cholesky"),
        ("%x = f32[8,8]{1,0} new-operation(%a)", "new-operation"),
        ('%x = f32[8,8]{1,0} custom-call(%a), custom_call_target="__cublas$gemm", backend_config={}', "__cublas$gemm"),
    ],
)  # fmt: skip
def test_what_may_multiply_and_is_not_known_is_listed(line, name):
    program = costs.count(hlo.parse(UNKNOWN.format(line=line)))
    assert program.unpriced == {name: 1}
    assert program.flops == 0
    assert program.hbm_bytes == 4 * 8 * 8 * 4


def test_operations_that_multiply_nothing_are_not_listed():
    text = UNKNOWN.format(
        line='%x = f32[8,8]{1,0} custom-call(%a), custom_call_target="TopK"\n  %y = f32[8,8]{1,0} tanh(%x)'
    )
    assert costs.count(hlo.parse(text)).unpriced == {}


def test_a_transfer_to_somewhere_unknown_is_listed():
    text = UNKNOWN.format(
        line="%t = token[] after-all()\n  %s = (f32[8,8]{1,0}, u32[], token[]) send(%a, %t), channel_id=3"
    )
    assert costs.count(hlo.parse(text)).unread == {"a transfer whose other end is not known (s)": 1}


def test_an_element_of_a_tuple_is_that_element():
    """`%x#1` is element 1 of the result of x, in the place of a get-tuple-element."""
    text = """HloModule m

ENTRY %main (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %t = (f32[8,8]{1,0}, /*index=1*/(f32[4,8]{1,0}, f32[2]{0}), bf16[8,8]{1,0}) custom-call(%a), custom_call_target="TopK"
  %n = bf16[8,8]{1,0} negate(%t#2)
  %d = f32[8,8]{1,0} dot(%t#0, %t#0), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %r = (f32[8,8]{1,0}, (f32[4,8]{1,0}, f32[2]{0})) tuple(%d, %t#1)
}
"""
    module = hlo.parse(text)
    work = {work.name: work for work, _ in costs.count(module).work}
    assert (work["n"].bytes, work["d"].bytes, work["d"].flops) == (2 * 8 * 8 * 2, 3 * 8 * 8 * 4, 2 * 8**3)
    assert [shape.dims for shape in module.entry.instructions["t#1"].shapes] == [(4, 8), (2,)]


def test_buffers_for_collectives_lie_in_a_gpus_memory():
    """Space 1 is a TPU's on-chip memory, and of a GPU program the part of HBM that NCCL may read."""
    text = UNKNOWN.format(line="%x = f32[8,8]{1,0:S(1)} negate(%a)")
    assert costs.count(hlo.parse(text)).hbm_bytes == 3 * 8 * 8 * 4
    assert costs.count(hlo.parse(text, hbm_spaces=(0, 1))).hbm_bytes == 4 * 8 * 8 * 4


@pytest.mark.parametrize(
    ("text", "size"),
    [("f8e4m3fn[8]", 8), ("f4e2m1fn[8]", 4), ("s4[8]", 4), ("pred[]", 1), ("token[]", 0), ("c64[2]", 16)],
)
def test_bytes_of_types(text, size):
    ((shape,),) = hlo._parts(text, (0,))
    assert shape.bytes == size


@pytest.mark.parametrize(
    ("reason", "hbm"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.12G of 15.75G hbm.", True),
        ("RESOURCE_EXHAUSTED: Program arguments (440.00G) exceeds available HBM (15.75G)", True),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem while allocating on stack for %k", False),
        ("RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 282624, available: 232448", False),
        ("INTERNAL: ptxas exited with non-zero error code", False),
    ],
)  # fmt: skip
def test_memory_of_a_core_is_not_hbm(reason, hbm):
    assert out_of_hbm(reason) == hbm
