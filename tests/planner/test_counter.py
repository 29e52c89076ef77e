"""The counter against small programs that were worked out on paper: the table of docs/scale.md, row by row."""

import re
from pathlib import Path

import pytest

from qwen3_jax.planner import costs, hlo

PAGE = Path(__file__).parents[2] / "docs/scale.md"
HEAD = "HloModule m, num_partitions=4\n\n"

LOOP = """%body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p = (s32[], f32[8,8]{1,0}) parameter(0)
  %one = s32[] constant(1)
  %next = s32[] add(%p#0, %one)
  %d = f32[8,8]{1,0} dot(%p#1, %p#1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[8,8]{1,0}) tuple(%next, %d)
}

%condition (q: (s32[], f32[8,8])) -> pred[] {
  %q = (s32[], f32[8,8]{1,0}) parameter(0)
  %bound = s32[] BOUND
  ROOT %c = pred[] compare(%q#0, %bound), direction=LT
}

ENTRY %main (a: f32[8,8], n: s32[]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %zero = s32[] FIRST
  %start = (s32[], f32[8,8]{1,0}) tuple(%zero, %a)
  %w = (s32[], f32[8,8]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %r = f32[8,8]{1,0} bitcast(%w#1)
}
"""

COPIED_SLICE = """%copied (p0: f32[10,8,8]) -> f32[10,8,8] {
  %p0 = f32[10,8,8]{2,1,0} parameter(0)
  ROOT %c = f32[10,8,8]{1,2,0} copy(%p0)
}

%fused (p0: f32[10,8,8], p1: s32[]) -> bf16[1,8,8] {
  %p0 = f32[10,8,8]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %z = s32[] constant(0)
  %f = f32[10,8,8]{1,2,0} fusion(%p0), kind=kLoop, calls=%copied
  %s = f32[1,8,8]{1,2,0} dynamic-slice(%f, %p1, %z, %z), dynamic_slice_sizes={1,8,8}
  ROOT %e = bf16[1,8,8]{1,2,0} convert(%s)
}

ENTRY %main (a: f32[10,8,8], i: s32[]) -> bf16[1,8,8] {
  %a = f32[10,8,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = bf16[1,8,8]{1,2,0} fusion(%a, %i), kind=kLoop, calls=%fused
}
"""

VIEWED_PRODUCT = """%viewed (p0: f32[1,8,8]) -> f32[8,8] {
  %p0 = f32[1,8,8]{2,1,0} parameter(0)
  ROOT %b = f32[8,8]{1,0} bitcast(%p0)
}

%spread (p0: f32[8,8]) -> f32[4,2,8] {
  %p0 = f32[8,8]{1,0} parameter(0)
  ROOT %b = f32[4,2,8]{2,1,0} bitcast(%p0)
}

%fused (p0: f32[1,8,8], p1: f32[8,8]) -> f32[4,2,8] {
  %p0 = f32[1,8,8]{2,1,0} parameter(0)
  %p1 = f32[8,8]{1,0} parameter(1)
  %v = f32[8,8]{1,0} fusion(%p0), kind=kLoop, calls=%viewed
  %d = f32[8,8]{1,0} dot(%v, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %o = f32[4,2,8]{2,1,0} fusion(%d), kind=kLoop, calls=%spread
}

ENTRY %main (a: f32[1,8,8], b: f32[8,8]) -> f32[4,2,8] {
  %a = f32[1,8,8]{2,1,0} parameter(0)
  %b = f32[8,8]{1,0} parameter(1)
  ROOT %f = f32[4,2,8]{2,1,0} fusion(%a, %b), kind=kOutput, calls=%fused
}
"""

UPDATE = """%update (p0: f32[10,8,8], p1: f32[1,8,8], p2: s32[]) -> f32[10,8,8] {
  %p0 = f32[10,8,8]{2,1,0} parameter(0)
  %p1 = f32[1,8,8]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %u = f32[10,8,8]{2,1,0} dynamic-update-slice(%p0, %p1, %p2, %z, %z)
}

%fused (p0: f32[10,8,8], p1: bf16[1,8,8], p2: s32[]) -> f32[10,8,8] {
  %p0 = f32[10,8,8]{2,1,0} parameter(0)
  %p1 = bf16[1,8,8]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %wide = f32[1,8,8]{2,1,0} convert(%p1)
  ROOT %f = f32[10,8,8]{2,1,0} fusion(%p0, %wide, %p2), kind=kLoop, calls=%update
}

ENTRY %main (a: f32[10,8,8], b: bf16[1,8,8], i: s32[]) -> f32[10,8,8] {
  %a = f32[10,8,8]{2,1,0} parameter(0)
  %b = bf16[1,8,8]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %f = f32[10,8,8]{2,1,0} fusion(%a, %b, %i), kind=kLoop, calls=%fused
}
"""

WIDER_SUM = """%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

ENTRY %main (a: bf16[64,16]) -> f32[64,16] {
  %a = bf16[64,16]{1,0} parameter(0)
  ROOT %r = f32[64,16]{1,0} all-reduce(%a), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
}
"""

SCATTERED_SUM = """%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

%fused (p0: f32[64,16], p1: s32[]) -> f32[16,16] {
  %p0 = f32[64,16]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %z = s32[] constant(0)
  %r = f32[64,16]{1,0} all-reduce(%p0), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %s = f32[16,16]{1,0} dynamic-slice(%r, %p1, %z), dynamic_slice_sizes={16,16}
}

ENTRY %main (a: f32[64,16], i: s32[]) -> f32[16,16] {
  %a = f32[64,16]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = f32[16,16]{1,0} fusion(%a, %i), kind=kCustom, calls=%fused
}
"""

GATHER = """ENTRY %main (a: bf16[64,16]) -> bf16[256,16] {
  %a = bf16[64,16]{1,0} parameter(0)
  ROOT %g = bf16[256,16]{1,0} all-gather(%a), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
}
"""

PROGRAMS = {
    "a loop of 12 products": LOOP.replace("BOUND", "constant(12)").replace("FIRST", "constant(0)"),
    "a slice of a copied stack": COPIED_SLICE,
    "a product of views, seen as another shape": VIEWED_PRODUCT,
    "a converted update in place": UPDATE,
    "a sum of bfloat16 in float32": WIDER_SUM,
    "a sum of which each keeps a part": SCATTERED_SUM,
    "a gather of parts": GATHER,
}


def _rows() -> dict[str, tuple[float, float, float]]:
    """FLOPs, HBM and ICI bytes by program, from the page's table: `name | FLOPs: how = figure | ...`."""
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0] in PROGRAMS:
            flops, hbm, ici = (float(re.split(r"= ", cell)[-1].replace(",", "")) for cell in cells[1:])
            rows[cells[0]] = flops, hbm, ici
    return rows


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_worked_out_on_paper(name):
    program = costs.count(hlo.parse(HEAD + PROGRAMS[name]))
    sent = sum(collective.bytes * times for collective, times in program.collectives)
    assert (program.flops, program.hbm_bytes, sent) == _rows()[name]
    assert not program.unknown_loops
    assert not program.unpriced
    assert not program.unread


@pytest.mark.parametrize(
    ("bound", "first", "decided_by_data"),
    [
        ("constant(12)", "parameter(1)", True),
        ("constant(12)", "multiply(%n, %n)", True),
        ("constant(12)", "partition-id()", True),
        # Fixed by the program, in a way that is not followed: 1 / 12 of the FLOPs would be a wrong figure, not a bound.
        ("multiply(%bound.1, %bound.1)", "constant(0)", False),
    ],
)
def test_a_loop_of_fixed_length_that_is_not_understood_is_an_error(bound, first, decided_by_data):
    text = HEAD + LOOP.replace("%bound = s32[] BOUND", f"%bound.1 = s32[] constant(4)\n  %bound = s32[] {bound}")
    text = text.replace("  %n = s32[] parameter(1)\n  %zero = s32[] parameter(1)", "  %zero = s32[] parameter(1)")
    text = text.replace("FIRST", first)
    if decided_by_data:
        program = costs.count(hlo.parse(text))
        assert program.unknown_loops == ["w"]
        assert program.flops == 2 * 8**3
    else:
        with pytest.raises(hlo.UnreadableProgram, match="the loop w has a fixed length"):
            costs.count(hlo.parse(text))
