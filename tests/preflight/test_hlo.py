"""Reading what a compiler made of a program."""

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from hgdpo_jax.models.layers import upsample
from hgdpo_jax.preflight.arithmetic import matrix_products, total_flops
from hgdpo_jax.preflight.hlo import Hlo

# Lines of programs for GPUs and TPUs, shortened; the compilers break none of them, hence the long lines (E501).
GPU = """HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }, entry_computation_layout={}

ENTRY %main.9 (state.1: f32[4,8], x.1: bf16[2,16,8,40]) -> f32[4,8] {
  %state.1 = f32[4,8]{1,0} parameter(0)
  %x.1 = bf16[2,16,8,40]{3,2,1,0} parameter(1)
  %kernel.1 = bf16[7,3,3,5]{3,2,1,0} parameter(2)
  %image.1 = bf16[2,6,4,5]{3,2,1,0} parameter(3)
  %attended.1 = (bf16[2,8,16,40]{3,1,2,0}, u8[0]{0}) custom-call(%x.1, %x.1, %x.1), custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "8", "16", "16"]}}}
  %convolved.1 = (bf16[2,6,4,7]{3,2,1,0}, u8[0]{0}) custom-call(%image.1, %kernel.1), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", backend_config={}
  %strided.1 = bf16[2,3,2,7]{3,2,1,0} slice(%convolved.1)
  %gradient.1 = (bf16[2,6,4,5]{3,2,1,0}, u8[0]{0}) custom-call(%strided.1, %kernel.1), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput", backend_config={}
  ROOT %product.1 = (f32[4,4]{1,0}, s8[4194304]{0}) custom-call(%state.1, %state.1), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/dot_general"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}
}
"""  # noqa: E501 - lines as XLA prints them
TPU = """HloModule jit_f, is_scheduled=true

%body.1 (argument.1: (s32[], bf16[8,4], bf16[4,4])) -> (s32[], bf16[8,4], bf16[4,4]) {
  %argument.1 = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)S(1)}, bf16[4,4]{1,0:T(8,128)(2,1)}) parameter(0)
  %x.2 = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%argument.1), index=1
  %w.2 = bf16[4,4]{1,0:T(8,128)(2,1)} get-tuple-element(%argument.1), index=2
  %y.2 = bf16[8,4]{1,0:T(8,128)(2,1)} convolution(%x.2, %w.2), window={}, dim_labels=bf_io->bf
}

%condition.1 (argument.2: (s32[], bf16[8,4], bf16[4,4])) -> pred[] {
  %argument.2 = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)S(1)}, bf16[4,4]{1,0:T(8,128)(2,1)}) parameter(0)
  %limit.1 = s32[]{:T(128)} constant(6)
}

ENTRY %main.1 (x.1: bf16[8,4]) -> bf16[8,4] {
  %x.1 = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %same.1 = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} copy(%x.1)
  %copied.1 = bf16[8,4]{0,1:T(8,128)(2,1)} copy(%x.1), metadata={op_name="jit(f)/layer/add"}
  %turned.1 = bf16[4,8]{1,0:T(8,128)(2,1)} transpose(%x.1), dimensions={1,0}
  ROOT %loop.1 = (s32[]{:T(128)}, bf16[8,4]{1,0}, bf16[4,4]{1,0}) while(%x.1), condition=%condition.1, body=%body.1
}
"""

# As the TPU's compiler writes a projection to eight heads, and a product of each head's weights and values, unbroken
# (E501).
TPU_HEADS = """HloModule jit_f, is_scheduled=true

ENTRY %main.1 (x.1: bf16[2,64,320,1]) -> bf16[16,30,8] {
  %x.1 = bf16[2,64,320,1]{2,1,0,3:T(8,128)(2,1)} parameter(0)
  %w.1 = bf16[8,40,320,1]{2,1,0,3:T(8,128)(2,1)} parameter(1)
  %values.1 = bf16[16,30,8]{2,1,0:T(8,128)(2,1)} parameter(2)
  %weights.1 = bf16[16,30,30]{2,1,0:T(8,128)(2,1)} parameter(3)
  %heads.1 = bf16[2,64,8,40]{3,1,2,0:T(8,128)(2,1)} convolution(%x.1, %w.1), window={size=1x8 pad=0_0x7_7 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f
  ROOT %sum.1 = bf16[16,30,8]{2,1,0:T(8,128)(2,1)} convolution(%values.1, %weights.1), window={size=16 stride=16 pad=15_15 lhs_dilate=15 rhs_reversal=1}, dim_labels=0fb_0oi->0fb
}
"""  # noqa: E501 - lines as XLA prints them
# Calls of its attention kernels, unbroken (E501), and of another kernel.
TPU_KERNELS = """HloModule jit_f, is_scheduled=true

ENTRY %main.1 (q.1: bf16[4,40,256]) -> bf16[4,256,40] {
  %blocks.1 = s8[1,4,1]{2,1,0} parameter(0)
  %q.1 = bf16[4,40,256]{2,1,0:T(8,128)(2,1)} parameter(1)
  %k.1 = bf16[4,40,128]{2,1,0:T(8,128)(2,1)} parameter(2)
  %splash_mha_fwd_residuals.1 = (f32[256,128]{1,0}, bf16[4,256,40]{2,1,0}) custom-call(%blocks.1, %blocks.1, %q.1, %k.1, %k.1), custom_call_target="tpu_custom_call"
  ROOT %splash_mha_dkv_no_residuals.1 = (bf16[1,4,256,40]{3,2,1,0}, bf16[4,40,128]{2,1,0}) custom-call(%blocks.1, %blocks.1, %q.1, %k.1, %k.1, %q.1), custom_call_target="tpu_custom_call"
  %other_kernel.1 = bf16[4,256,40]{2,1,0} custom-call(%q.1), custom_call_target="tpu_custom_call"
}
"""  # noqa: E501 - lines as XLA prints them


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def compiled(function, *arguments, **options):
    return jax.jit(function, **options).lower(*arguments).compile()


def read(function, *arguments, **options):
    return Hlo(compiled(function, *arguments, **options).as_text())


def convolve(x, kernel, stride):
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def in_turn(x, w):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=7)[0]


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lambda x, w: jnp.tanh(x @ w) @ w, (shape(40, 50), shape(50, 50))),
        (lambda x, y: jnp.einsum("nqhd,nkhd->nhqk", x, y), (shape(2, 30, 3, 8), shape(2, 20, 3, 8))),
        (in_turn, (shape(40, 50), shape(50, 50))),
        (jax.grad(lambda x, w: in_turn(x, w).sum()), (shape(40, 50), shape(50, 50))),
        (lambda x, w: convolve(x, w, 1), (shape(2, 8, 6, 3), shape(3, 3, 3, 5))),
        (lambda x, w: convolve(x, w, 2), (shape(2, 8, 6, 3), shape(3, 3, 3, 5))),
        (jax.value_and_grad(lambda x, w: (convolve(x, w, 2) ** 2).sum()), (shape(2, 8, 6, 3), shape(3, 3, 3, 5))),
    ],
    ids=["products", "attention", "loop", "loop's gradient", "convolution", "strided", "its gradient"],
)
def test_operations_of_a_compiled_program_are_those_of_the_traced_one(function, arguments):
    traced = matrix_products(jax.make_jaxpr(function)(*arguments).jaxpr, "cpu")
    assert read(function, *arguments).flops() == total_flops(traced)


def test_what_a_program_computes_twice_its_compiler_computes_once():
    x = shape(40, 50), shape(50, 50)
    assert read(lambda x, w: jnp.tanh(x @ w) + jnp.sin(x @ w), *x).flops() == 2 * 40 * 50 * 50


def test_calls_of_nvidias_libraries_are_products():
    attended, convolved, product = 2 * 2 * (2 * 8 * 16 * 16) * 40, 2 * (2 * 6 * 4 * 7) * 9 * 5, 2 * 4 * 4 * 8
    # A gradient takes as much as its convolution, here one with stride 2.
    assert Hlo(GPU).flops() == attended + convolved + convolved / 4 + product


def test_a_loop_of_the_tpus_compiler_runs_up_to_the_constant_in_its_condition():
    assert Hlo(TPU).flops() == 6 * 2 * (8 * 4) * 4


def test_an_axis_that_the_tpus_compiler_writes_as_a_window_with_one_element_counts_once():
    assert Hlo(TPU_HEADS).flops() == 2 * (2 * 64) * 320 * (8 * 40) + 2 * 16 * (30 * 8) * 30


def test_attention_kernels_of_a_tpu_are_two_products_and_five_for_the_gradient():
    assert Hlo(TPU_KERNELS).flops() == (2 + 5) * 2 * 4 * (256 * 128) * 40


def test_products_in_float32_are_counted_as_often_as_they_run():
    arguments = shape(40, 50), shape(50, 50)
    assert sum(read(in_turn, *arguments).float32_products().values()) == 7
    assert Hlo(GPU).float32_products() == {"jit(step)/dot_general": 1}
    assert not Hlo(TPU).float32_products()


def test_arrays_that_are_written_in_another_order_are_counted_but_for_small_ones_and_weights():
    assert Hlo(TPU).transposes(8 * 4) == {"bf16[8,4] jit(f)/layer/add": 1, "bf16[8,4] transpose": 1}
    assert not Hlo(TPU).transposes(8 * 4 + 1)
    assert not Hlo(TPU).transposes(8 * 4, besides=[(4, 8)])


def test_only_donated_arguments_are_written_over():
    def step(state, x):
        return state + x @ x, x.sum()

    arguments = shape(30, 30), shape(30, 30)
    assert read(step, *arguments, donate_argnums=0).reused_bytes() == 4 * 30 * 30
    assert read(step, *arguments).reused_bytes() == 0
    assert Hlo(GPU).reused_bytes() == 4 * 4 * 8


def test_temporaries_are_those_at_the_peak_with_their_source(tmp_path):
    def twice_enlarged(x, w):
        large = jnp.tanh(upsample(x)) @ w
        return (large @ large.swapaxes(-1, -2)).sum()

    options = {"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": True}
    arguments = shape(2, 33, 20, 16), shape(16, 16)
    program = jax.jit(twice_enlarged).lower(*arguments).compile(compiler_options=options)
    (live_ranges,) = epath.Path(tmp_path).glob("*live-range.txt")
    found = Hlo(program.as_text()).temporaries(live_ranges.read_text(), count=3)
    assert found
    assert sum(kind.bytes for kind in found) <= program.memory_analysis().temp_size_in_bytes + 4
    assert all(kind.array.startswith("f32[") for kind in found)


def test_a_source_is_a_line_of_this_package_and_the_modules_around_it():
    hlo = Hlo(
        compiled(lambda x, w: convolve(jnp.tanh(upsample(x)), w, 1), shape(1, 9, 7, 3), shape(3, 3, 3, 4)).as_text()
    )
    assert any(place.startswith("models/layers.py:") for place in hlo._places.values())
