"""What is read from the compilers' texts, on texts small enough to count by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from pallas_kernels.analysis import bundles, chips, fetches, traffic

HLO = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(bf16[7,130]{1,0:T(8,128)(2,1)}, \
f32[128]{0:T(128)})->(f32[8,128]{1,0:T(8,128)}, f32[10,3]{0,1:T(4,128)})}, replicas={f32[9]}

%body.1 (p.1: f32[8,128]) -> f32[8,128] {
  %p.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %negate.1 = f32[8,128]{1,0:T(8,128)} negate(%p.1)
}

ENTRY %main.1 (x.1: bf16[7,130], s.1: f32[128]) -> f32[8,128] {
  %x.1 = bf16[7,130]{1,0:T(8,128)(2,1)} parameter(0)
  %s.1 = f32[128]{0:T(128)} parameter(1)
  %copy-start = (f32[128]{0:T(128)S(1)}, f32[128]{0:T(128)}, u32[]{:S(2)}) copy-start(%s.1)
  %copy-done = f32[128]{0:T(128)S(1)} copy-done(%copy-start)
  %norm.1 = f32[8,128]{1,0:T(8,128)} custom-call(%x.1, %copy-done), custom_call_target="tpu_custom_call"
  %fusion = (f32[8,128]{1,0:T(8,128)S(1)}, s4[64]{0}) fusion(%norm.1), kind=kLoop, calls=%fused
  %part = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%fusion), index=0
  ROOT %loop = f32[8,128]{1,0:T(8,128)} while(%norm.1), body=%body.1, backend_config={"known_trip_count":{"n":"5"}}
}
"""


def moved(found):
    return [(op.name, op.read, op.written) for op in found]


def test_bytes_outside_vmem_are_counted():
    tile = 8 * 128 * 4
    assert moved(traffic.ops(HLO)) == [
        ("copy-done", 512, 0),  # HBM to VMEM: no write, and the start counts nothing.
        ("norm.1", 8 * 256 * 2, tile),  # 7x130 is padded to 8x256; the scale is in VMEM already.
        ("fusion", tile, 32),  # 64 numbers of four bits; the other result stays in VMEM.
        *[("negate.1", tile, tile)] * 5,
    ]


def test_padding_is_what_arguments_and_results_take_beyond_their_numbers():
    # 7x130 as 8x256; 128 and 8x128 are whole tiles; ten rows of three, columns first, as 4x128.
    assert traffic.padding(HLO) == (8 * 256 - 7 * 130) * 2 + (4 * 128 - 10 * 3) * 4


def test_blocks_copied_again_are_counted():
    once, again = (traffic.ops(HLO, copies)[1] for copies in (None, {"norm": [3.0, 1.0, 2.0]}))
    assert (again.read, again.written) == (3 * once.read, 2 * once.written)
    assert traffic.ops(HLO, {"norm": [3.0]})[1] == once  # Not this call: the number of arrays differs.


def test_asynchronous_copies_overlap():
    assert [op.overlaps for op in traffic.ops(HLO)][:2] == [True, False]


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match=r"compiled\.as_text"):
        traffic.ops("HloModule empty")


def copied(x_map, grid, y_map=None, block=(8, 128)):
    def kernel(x, y):
        y[...] = x[...]

    call = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((16, 384), jnp.float32),
        grid=grid,
        in_specs=[pl.BlockSpec(block, x_map)],
        out_specs=pl.BlockSpec(block, y_map or (lambda i, j: (i, j))),
        name="copy",
    )
    return fetches.copies(jax.make_jaxpr(jax.jit(call))(jnp.ones((16, 384), jnp.float32)))


def test_copies_follow_the_grid():
    assert copied(lambda i, j: (i, j), (2, 3)) == {"copy": [1.0, 1.0]}
    # The same block for three steps, then its neighbour: two of six blocks, each once.
    assert copied(lambda i, j: (i, 0), (2, 3)) == {"copy": [2 / 6, 1.0]}
    # Blocks 0 and 1 in turn, three times: six copies of blocks, as many as the array has.
    assert copied(lambda i, j: (j, 0), (3, 2), lambda i, j: (j, i)) == {"copy": [6 / 6, 1.0]}
    # Two results in turn: each block is written, left and written again.
    assert copied(lambda i, j: (j, i), (3, 2), lambda i, j: (j, 0)) == {"copy": [1.0, 6 / 6]}
    # All six blocks for each of two outer steps.
    assert copied(lambda k, i, j: (i, j), (2, 2, 3), lambda k, i, j: (i, j)) == {"copy": [2.0, 2.0]}


BUNDLES = """= control target key start
LB: loop body
     0   :  { %s1 = smov 0 }
   0x1 LB: > { %s2 = sadd.s32 1, %s1 /* copy for cssa */
iteration_bounds: (10)
 }
   0x2   : > { %p1 = scmp.eq.s32.totalorder %s2, 0  ;;  %7 = sbr.rel (%p1) target = $region9 }
   0x3 LB: >> { %s3 = sadd.s32 2, %s4 }
   0x4   : >> { %p3 = scmp.ge.s32.totalorder %s3, 8 /* loop exit test */ }
   0x5   : >> { %8 = sbr.rel (!%p3) target = $region5 }
   0x6   : > { %p2 = scmp.ge.s32.totalorder %s9, 12 /* loop exit test */  ;;  %s9 = sld [smem:#allocation1_spill] }
   0x7   : > { %9 = sbr.rel (!%p2) target = $region3 }
   0x8   :  { %10 = vnop }
"""
SLOTS = "== CAPACITY:\nMXU, VALU, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL\n 4 4 3 3 1 1\n== UTILIZATION:\n" + "\n".join(
    ["0 0 0 0 0 0"] * 3 + ["0 4 1 1 0 0", "0 4 1 0 1 1", "0 0 0 0 0 0"] + ["0 0 0 0 0 0"] * 3
)


@pytest.fixture
def dumps(tmp_path):
    (tmp_path / "17-norm.1-02-final_bundles.txt").write_text(BUNDLES)
    (tmp_path / "17-norm.1-00-final_hlo-static-per-bundle-utilization.txt").write_text(SLOTS)
    (tmp_path / "17-norm.1-01-schedule-analysis_final_bundles.txt").write_text("")
    (tmp_path / "17-norm.10-02-final_bundles.txt").write_text("")
    return tmp_path


def test_bundles_are_weighted_by_their_loops(dumps):
    found = bundles.schedule(dumps, "norm.1")
    assert found is not None
    # A grid of 10 (the pipeline's two steps more only copy), around 8 / 2 trips; two bundles outside.
    assert found.cycles == 2 + 10 * (4 + 4 * 3)
    assert (found.bundles, found.spills, found.fills) == (9, 1, 1)
    assert found.busiest == ("VALU", 10 * 4 * 8 / (4 * found.cycles))
    assert bundles.schedule(dumps, "absent") is None


def test_every_chip_is_complete():
    for name, chip in chips.CHIPS.items():
        assert chips.chip(name) is chip
        assert chip.bandwidth > 1e11
    assert "major: 8 minor: 0" in chips.CHIPS["a100"].target
    with pytest.raises(ValueError, match="'b200' is unknown; expected one of v4, v5e"):
        chips.chip("b200")
