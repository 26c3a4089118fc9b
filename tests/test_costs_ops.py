"""Formulas of what is no product and no convolution: conventions, what moves, and that nothing is missing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.costs import Cost, OpSpec, formula_for, formulas, op
from costmodel.costs.attention import pairs, tiled_pairs
from costmodel.costs.elementwise import EXP, TANH
from costmodel.costs.layout import loop, strides_of
from costmodel.costs.movement import copy_kind
from costmodel.costs.spec import TensorSpec

quick = settings(max_examples=60, deadline=None)
SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)


def price(spec: OpSpec) -> Cost:
    formula = formula_for(spec.name)
    assert formula is not None, spec.name
    return formula(spec)


def crossed(*shape: int) -> TensorSpec:
    """The last two dimensions lie the other way round."""
    swapped = strides_of(TensorSpec((*shape[:-2], shape[-1], shape[-2])))
    return TensorSpec(shape, stride=(*swapped[:-2], swapped[-1], swapped[-2]))


# What people's models run, beyond what the eight of the issue do: no gap among these.
USUAL = """
    add sub mul div pow sqrt rsqrt exp log sin cos tanh sigmoid erf abs neg clamp clamp_min maximum minimum where
    masked_fill eq ne lt le gt ge logical_and logical_not bitwise_and floor round remainder lerp addcmul addcdiv
    relu relu_ hardtanh hardtanh_ leaky_relu gelu silu silu_ hardswish hardsigmoid elu selu celu mish softplus glu prelu
    _prelu_kernel log_sigmoid_forward hardshrink softshrink threshold threshold_backward hardtanh_backward gelu_backward
    silu_backward hardswish_backward hardsigmoid_backward sigmoid_backward tanh_backward elu_backward
    leaky_relu_backward softplus_backward mish_backward glu_backward log_sigmoid_backward _prelu_kernel_backward
    native_dropout native_dropout_backward dropout bernoulli bernoulli_ rand randn randint randperm normal_ uniform_
    sum mean amax amin max min argmax argmin any all prod var var_mean std norm linalg_vector_norm logsumexp cumsum
    cumprod sort argsort topk kthvalue median unique_consecutive _unique2 nonzero
    _softmax _log_softmax _safe_softmax softmax log_softmax _softmax_backward_data _log_softmax_backward_data
    nll_loss_forward nll_loss_backward nll_loss2d_forward nll_loss2d_backward cross_entropy_loss mse_loss
    mse_loss_backward l1_loss smooth_l1_loss smooth_l1_loss_backward huber_loss binary_cross_entropy
    binary_cross_entropy_with_logits kl_div
    native_batch_norm batch_norm native_batch_norm_backward _native_batch_norm_legit native_layer_norm layer_norm
    native_layer_norm_backward native_group_norm group_norm native_group_norm_backward instance_norm rms_norm
    _fused_rms_norm _fused_rms_norm_backward _weight_norm_interface
    mm addmm bmm baddbmm addbmm mv dot linear matmul linear_backward
    convolution convolution_backward conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_flash_attention_for_cpu_backward _native_multi_head_attention _transformer_encoder_layer_fwd
    max_pool2d_with_indices max_pool2d_with_indices_backward max_pool2d max_pool1d max_pool3d_with_indices avg_pool1d
    avg_pool2d avg_pool2d_backward avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool2d_backward adaptive_avg_pool2d
    adaptive_max_pool2d upsample_nearest1d upsample_nearest2d upsample_nearest2d_backward upsample_bilinear2d
    upsample_bilinear2d_backward upsample_bicubic2d upsample_linear1d grid_sampler_2d
    embedding embedding_dense_backward _embedding_bag index index_put index_put_ index_select gather scatter scatter_add
    index_add index_copy index_fill masked_select take masked_scatter scatter_reduce
    clone copy_ _to_copy contiguous cat stack split split_with_sizes chunk unbind repeat repeat_interleave roll flip
    constant_pad_nd reflection_pad2d reflection_pad2d_backward replication_pad2d select_backward slice_backward
    slice_scatter select_scatter tril triu arange zeros ones full zeros_like ones_like fill_ zero_ empty empty_like
    new_zeros scalar_tensor linspace eye one_hot diag_embed
    view reshape t transpose permute expand slice select squeeze unsqueeze detach alias as_strided unfold narrow
    _local_scalar_dense lift_fresh
    lstm gru rnn_tanh lstm_cell gru_cell mkldnn_rnn_layer mkldnn_rnn_layer_backward
    _fft_c2c _fft_r2c _fft_c2r linalg_inv_ex linalg_cholesky_ex linalg_qr _linalg_svd _linalg_eigh _linalg_solve_ex
    _foreach_add _foreach_add_ _foreach_mul_ _foreach_addcmul_ _foreach_addcdiv_ _foreach_lerp_ _foreach_sqrt
    _foreach_div_ _foreach_norm _foreach_copy_ _foreach_zero_ _fused_adam_ _fused_adamw_ _fused_sgd_ _fused_adagrad_
"""


@pytest.mark.parametrize("name", USUAL.split())
def test_there_is_a_formula(name):
    assert formula_for(f"aten::{name}") is not None


def test_every_formula_is_documented_by_its_family():
    assert len(formulas()) > 900
    assert all("::" in name and "." not in name for name in formulas())


# Conventions


@quick
@given(SIZES)
def test_elementwise_counts_each_result_once(shape):
    n = TensorSpec(shape).numel
    assert price(op("aten::add", [shape, shape], [shape])).flops == n
    assert price(op("aten::add", [shape, shape], [shape], alpha=0.5)).flops == 2 * n
    assert price(op("aten::mul", [shape, (1,) * len(shape)], [shape])).flops == n
    assert price(op("aten::exp", [shape], [shape])).flops == EXP * n
    assert price(op("aten::gelu", [shape], [shape])).flops == (TANH + 4) * n
    assert price(op("aten::relu_", [shape], [shape])).flops == n
    assert price(op("aten::mul", [shape, shape], [shape])).kind == "elementwise"
    assert price(op("aten::exp", [shape], [shape])).kind == "elementwise_transcendental"


@quick
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))
def test_a_batch_norm_in_training_costs_three_flops_an_element_more(n, c, side):
    x = (n, c, side, side)
    ins, outs = [x, (c,), (c,), (c,), (c,)], [x, (c,), (c,)]
    frozen, training = (price(op("aten::native_batch_norm", ins, outs, training=t)) for t in (False, True))
    assert training.flops - frozen.flops == 3 * n * c * side * side
    assert (frozen.kind, training.kind) == ("batch_norm_eval", "batch_norm_train")


@quick
@given(SIZES, SIZES)
def test_copies_and_views_do_no_arithmetic(shape, other):
    spec = op("aten::clone", [shape], [shape])
    assert price(spec).flops == 0
    assert price(spec).bytes_read(spec) == price(spec).bytes_written(spec) == (TensorSpec(shape).nbytes,)
    spec = op("aten::view", [shape], [other])
    assert price(spec).flops == sum(price(spec).bytes_read(spec)) == sum(price(spec).bytes_written(spec)) == 0


def test_attention_is_counted_where_torchs_counter_says_nothing():
    q = (2, 4, 128, 32)
    name = "aten::_scaled_dot_product_flash_attention_for_cpu"
    matmuls = 2 * 2 * (2 * 4 * 128 * 128 * 32)
    whole = price(op(name, [q, q, q], [q, (2, 4, 128)]))
    assert whole.flops > matmuls
    causal = price(op(name, [q, q, q], [q, (2, 4, 128)], is_causal=True))
    assert whole.flops / 2 < causal.flops < whole.flops
    backward = price(op(f"{name}_backward", [q] * 5 + [(2, 4, 128)], [q] * 3))
    assert backward.flops > 2.5 * matmuls


@quick
@given(st.integers(1, 1000), st.integers(1, 1000))
def test_tiles_compute_no_fewer_pairs_than_attend(queries, keys):
    for causal in (False, True):
        needed = pairs(queries, keys, causal)
        assert needed <= tiled_pairs(queries, keys, causal) <= queries * keys
    assert pairs(queries, keys, True) == sum(min(i + 1, keys) for i in range(queries))


def test_optimizers_cost_what_their_ops_cost():
    n, shape = 60, (6, 10)
    plain = price(op("aten::add_", [shape, shape], [shape], alpha=-0.1)).flops
    assert price(op("aten::_fused_sgd_", [shape, shape], [shape, shape])).flops == plain == 2 * n
    steps = [
        op("aten::mul_", [shape], [shape], other=0.99),
        op("aten::lerp_", [shape, shape], [shape], weight=0.1),
        op("aten::mul_", [shape], [shape], other=0.999),
        op("aten::addcmul_", [shape, shape, shape], [shape], value=0.001),
        op("aten::sqrt", [shape], [shape]),
        op("aten::div", [shape], [shape], other=0.5),
        op("aten::add_", [shape], [shape], other=1e-8),
        op("aten::addcdiv_", [shape, shape, shape], [shape], value=-0.1),
    ]
    one_by_one = sum(price(s).flops for s in steps)
    fused = price(op("aten::_fused_adamw_", [shape] * 4 + [()], [shape] * 4, weight_decay=0.1)).flops
    assert one_by_one == fused == 14 * n
    listed = price(op("aten::_foreach_addcdiv_", [shape] * 6, [shape] * 2))
    assert (listed.flops, listed.calls) == (3 * 2 * n, 2)


# Layout


def test_layout_makes_the_kind():
    plain = TensorSpec((8, 16))
    assert copy_kind(plain, plain) == "copy"
    assert copy_kind(TensorSpec((8, 16), stride=(32, 1)), plain) == "copy_rows"
    assert copy_kind(crossed(8, 16), plain) == "copy_transpose"
    assert copy_kind(TensorSpec((8, 16), stride=(0, 1)), plain) == "copy_rows"  # one row, many times
    spec = op("aten::add", [plain, crossed(8, 16)], [plain])
    assert price(spec).kind == "elementwise_strided"
    spec = op("aten::add", [plain, (16,)], [plain])
    assert price(spec).kind == "elementwise"
    assert price(spec).terms["runs"] == 8


@quick
@given(SIZES)
def test_a_loop_covers_every_element(shape):
    plain = TensorSpec(shape)
    assert loop(plain, [plain]) == (plain.numel, 1, True)
    assert loop(plain, [TensorSpec((1,) * len(shape))]).elements == plain.numel
    if len(shape) > 1:
        assert loop(plain, [crossed(*shape)]).elements == plain.numel


@quick
@given(st.integers(2, 50), st.integers(1, 20), st.integers(1, 30))
def test_gathers_read_what_they_return(rows, width, picked):
    index = TensorSpec((picked,), "int64")
    spec = op("aten::embedding", [(rows, width), index], [(picked, width)])
    assert price(spec).bytes_read(spec) == (4 * picked * width, 8 * picked)
    spec = op("aten::index_put_", [(rows, width), index, (picked, width)], [(rows, width)])
    assert price(spec).bytes_written(spec) == (4 * picked * width,)
    spec = op("aten::copy_", [(rows, width), (rows, width)], [(rows, width)])
    assert price(spec).bytes_read(spec)[0] == 0


def test_reductions_tell_which_side_they_reduce():
    assert price(op("aten::sum", [(64, 32)], [(64,)], dim=[1])).kind == "reduce_inner"
    assert price(op("aten::sum", [(64, 32)], [(32,)], dim=[0])).kind == "reduce_outer"
    assert price(op("aten::_softmax", [(64, 32)], [(64, 32)], dim=-1)).kind == "softmax"
    assert price(op("aten::_softmax", [(64, 32)], [(64, 32)], dim=0)).kind == "softmax_outer"
