"""Views, copies, fills and gathers: no arithmetic, bytes only.

A view moves nothing. A copy reads its source and writes its result; its kind says how the source lies beside the
result: ``copy`` (one run), ``copy_rows`` (runs of neighbours) or ``copy_transpose`` (the innermost step of the
two differs).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from .layout import copy_bytes, first, loop
from .spec import Cost, OpSpec, TensorSpec

__all__ = ["FORMULAS", "copy_cost", "copy_kind", "view"]


def view(op: OpSpec) -> Cost:
    """Another shape of the same bytes.

    >>> from .spec import op
    >>> view(op("aten::t", [(2, 3)], [(3, 2)])).bytes_written(op("aten::t", [(2, 3)], [(3, 2)]))
    (0,)
    """
    return Cost(0, "view", read=(0,) * len(op.inputs), write=(0,) * len(op.outputs), calls=0)


def allocate(op: OpSpec) -> Cost:
    """Memory that nobody has written yet.

    >>> from .spec import op
    >>> allocate(op("aten::empty", [], [(3,)])).kind
    'allocate'
    """
    return Cost(0, "allocate", read=(0,) * len(op.inputs), write=(0,) * len(op.outputs), calls=0)


def copy_kind(source: TensorSpec, target: TensorSpec) -> str:
    """How a copy runs.

    >>> copy_kind(TensorSpec((4, 8)), TensorSpec((4, 8)))
    'copy'
    >>> copy_kind(TensorSpec((4, 8), stride=(16, 1)), TensorSpec((4, 8)))  # a slice of wider rows
    'copy_rows'
    >>> copy_kind(TensorSpec((4, 8), stride=(1, 4)), TensorSpec((4, 8)))
    'copy_transpose'
    """
    shape = loop(target, [source])
    if not shape.unit:
        return "copy_transpose"
    return "copy" if shape.runs == 1 else "copy_rows"


def copy_cost(source: TensorSpec, target: TensorSpec, read: tuple[int, ...] | None = None) -> Cost:
    """Cost of writing `source` (broadcast where it must) into `target`."""
    shape = loop(target, [source])
    return Cost(
        0,
        copy_kind(source, target),
        terms={"n": float(target.numel), "runs": float(shape.runs)},
        read=read,
        workspace=_transpose_block(source, target),
    )


TRANSPOSE_BLOCK = 60  # rows and columns of the block through which ATen transposes a matrix


def _transpose_block(source: TensorSpec, target: TensorSpec) -> int:
    """Bytes of that block, for matrices that have at least as many elements.

    >>> _transpose_block(TensorSpec((400, 500), stride=(1, 400)), TensorSpec((400, 500)))
    14400
    """
    elements = TRANSPOSE_BLOCK**2
    plain = len(source.shape) == 2 and target.contiguous and source.dtype == target.dtype and bool(source.stride)
    crossed = plain and source.stride == (1, source.shape[0]) and source.numel >= elements
    return elements * source.itemsize if crossed and source.shape == target.shape else 0


def clone(op: OpSpec) -> Cost:
    """A new tensor of the same values.

    >>> from .spec import op
    >>> c = clone(op("aten::clone", [(4, 8)], [(4, 8)]))
    >>> c.flops, c.kind, c.terms["n"]
    (0, 'copy', 32.0)
    """
    return copy_cost(op.inputs[0], op.outputs[0]) if op.outputs else view(op)


def copy_into(op: OpSpec) -> Cost:
    """``self.copy_(source)``: the old values of self are not read.

    >>> from .spec import op
    >>> spec = op("aten::copy_", [(4, 8), (8,)], [(4, 8)])
    >>> copy_into(spec).bytes_read(spec)
    (0, 32)
    """
    target, source = op.inputs[:2]
    if len(source.shape) > len(target.shape):  # leading ones may be dropped
        source = TensorSpec(source.shape[len(source.shape) - len(target.shape) :], source.dtype)
    return copy_cost(source, target, read=(0, source.nbytes))


def gather_copy(op: OpSpec) -> Cost:
    """Values from here and there (`cat`, `stack`, `repeat`, `roll`, `flip`): every result element is copied once.

    >>> from .spec import op
    >>> c = gather_copy(op("aten::cat", [(2, 3), (4, 3)], [(6, 3)], dim=0))
    >>> c.kind, c.terms["n"], c.terms["tensors"]
    ('cat', 18.0, 2.0)
    """
    out = first(op)
    dim = op.attr("dim", 0)
    runs = prod(out.shape[: dim % len(out.shape)]) * len(op.inputs) if out.shape and isinstance(dim, int) else 1
    terms = {
        "n": float(sum(t.numel for t in op.outputs)),
        "tensors": float(len(op.inputs)),
        "runs": float(runs),
    }
    cast = sum(t.numel * t.itemsize for t in op.inputs if t.dtype != out.dtype)
    return Cost(0, "cat", terms=terms, workspace=cast)


def shifted(op: OpSpec) -> Cost:
    """`roll`, `flip`, `repeat`: the result is written in runs of the innermost dimension.

    >>> from .spec import op
    >>> shifted(op("aten::roll", [(2, 7, 7, 96)], [(2, 7, 7, 96)], shifts=[-3], dims=[1])).terms["runs"]
    98.0
    """
    out = op.outputs[0]
    runs = out.numel // max(out.shape[-1] if out.shape else 1, 1)
    shifts = op.attr("shifts", []) if "roll" in op.name else []
    between = min(max(len(shifts) - 1, 0), 2)  # a roll of several dimensions rolls one after the other
    terms = {"n": float(out.numel * (1 + between)), "runs": float(runs)}
    return Cost(0, "copy_rows", terms=terms, workspace=between * out.numel * out.itemsize)


def fill(op: OpSpec) -> Cost:
    """Constants are written and nothing is read.

    >>> from .spec import op
    >>> spec = op("aten::zero_", [(4,)], [(4,)])
    >>> fill(spec).bytes_read(spec), fill(spec).bytes_written(spec)
    ((0,), (16,))
    """
    n = sum(t.numel for t in op.outputs)
    return Cost(0, "fill", terms={"n": float(n)}, read=(0,) * len(op.inputs))


def random(flops_each: int) -> Callable[[OpSpec], Cost]:
    """Values of a generator; each is a chain of integer operations that does not vectorise."""

    def formula(op: OpSpec) -> Cost:
        """Integer operations of the generator a value.

        >>> from .spec import op
        >>> random(20)(op("aten::bernoulli_", [(4,)], [(4,)], p=0.5)).flops
        80
        """
        n = first(op).numel
        return Cost(flops_each * n, "random", terms={"n": float(n)}, read=(0,) * len(op.inputs))

    return formula


def native_dropout(op: OpSpec) -> Cost:
    """A random value an element, a comparison and a product with the scale.

    >>> from .spec import TensorSpec, op
    >>> native_dropout(op("aten::native_dropout", [(8,)], [(8,), TensorSpec((8,), "bool")], p=0.1)).flops
    176
    """
    n = op.outputs[0].numel
    return Cost((GENERATOR + 2) * n, "random", terms={"n": float(n)}, workspace=n * op.outputs[0].itemsize)


GENERATOR = 20  # Mersenne twister: tempering and the share of the state update, in integer operations


def pad(op: OpSpec) -> Cost:
    """A larger tensor with the source inside; constant, reflected, replicated or circular borders.

    >>> from .spec import op
    >>> pad(op("aten::constant_pad_nd", [(2, 3)], [(2, 5)], pad=[1, 1])).terms["n"]
    10.0
    """
    out = op.outputs[0]
    source = op.inputs[-1] if "backward" in op.name else op.inputs[0]
    width = source.shape[-1] if source.shape else 1
    same = source.shape == out.shape
    kind = "copy" if same else "copy_rows"
    terms = {"n": float(out.numel), "runs": 1.0 if same else float(source.numel // max(width, 1))}
    return Cost(0, kind, terms=terms)


def pad_backward(op: OpSpec) -> Cost:
    """Each gradient element is added to where its value came from.

    >>> from .spec import op
    >>> pad_backward(op("aten::reflection_pad2d_backward", [(1, 1, 6, 6), (1, 1, 4, 4)], [(1, 1, 4, 4)])).flops
    36
    """
    g = op.inputs[0]
    runs = g.numel // max(g.shape[-1], 1)
    reads = (g.nbytes,) + (0,) * (len(op.inputs) - 1)
    return Cost(g.numel, "copy_rows", terms={"n": float(g.numel), "runs": float(runs)}, read=reads)


def scatter_slice(op: OpSpec) -> Cost:
    """Zeros, then the gradient of a slice, select or diagonal copied into its place.

    >>> from .spec import op
    >>> c = scatter_slice(op("aten::select_backward", [(2, 8)], [(2, 5, 8)], dim=1, index=0))
    >>> c.terms["n"], c.terms["runs"]
    (96.0, 2.0)
    """
    g, out = op.inputs[0], op.outputs[0]
    run = g.shape[-1] if g.shape else 1
    terms = {"n": float(out.numel + g.numel), "runs": float(g.numel // max(run, 1))}
    return Cost(0, "copy_rows", terms=terms, write=(out.nbytes + g.nbytes,))


def index_read(op: OpSpec) -> Cost:
    """Rows or elements picked by an integer tensor: as many bytes are read as are written, and the indices.

    >>> from .spec import TensorSpec, op
    >>> spec = op("aten::index", [(100, 8), TensorSpec((5,), "int64")], [(5, 8)])
    >>> index_read(spec).bytes_read(spec)
    (160, 40)
    """
    out = op.outputs[0]
    indices = tuple(t.nbytes for t in op.inputs[1:])
    width = _row_width(op.inputs[0], op, out)
    terms = {"n": float(out.numel), "rows": float(out.numel // max(width, 1))}
    return Cost(0, "index", terms=terms, read=(out.nbytes, *indices))


def _row_width(source: TensorSpec, op: OpSpec, out: TensorSpec) -> int:
    """Neighbouring elements that move together: what follows the last indexed dimension."""
    flags = op.attr("indices")
    if op.name.split(".")[0] in ("aten::gather", "aten::take", "aten::take_along_dim"):
        return 1
    last = max(d for d, used in enumerate(flags) if used) if flags else len(op.inputs) - 2
    if op.attr("dim") is not None:
        last = op.attr("dim") % max(len(source.shape), 1)
    return min(prod(source.shape[last + 1 :]), max(out.numel, 1))


def index_write(op: OpSpec) -> Cost:
    """Values written, or with `accumulate` added, at the places that an integer tensor names, in a copy or in place.

    >>> from .spec import TensorSpec, op
    >>> ins = [(169, 24), TensorSpec((2401,), "int64"), (2401, 24)]
    >>> index_write(op("aten::index_put", ins, [(169, 24)], accumulate=True)).flops
    57624
    """
    values, out = op.inputs[-1], first(op)
    base = op.name.split(".")[0]
    indexed = max((t.numel for t in op.inputs[1:]), default=0)
    moved = values.numel if len(values.shape) else indexed
    adds = op.attr("accumulate", "add" in base or "reduce" in base)
    in_place = base.endswith("_")
    written = moved * out.itemsize + (0 if in_place else out.nbytes)
    reads = (0 if in_place and not adds else out.nbytes, *(t.nbytes for t in op.inputs[1:]))
    width = _row_width(op.inputs[0], op._replace(inputs=op.inputs[:-1]), out) if "index_put" in base else 1
    terms = {
        "n": float(moved),
        "copied": 0.0 if in_place else float(out.numel),
        "rows": float(moved // max(width, 1)),
    }
    return Cost(moved if adds else 0, "index_put", terms=terms, read=reads, write=(written,))


def embedding(op: OpSpec) -> Cost:
    """A row of the table for each index; the rest of the table is not read.

    >>> from .spec import TensorSpec, op
    >>> spec = op("aten::embedding", [(1000, 64), TensorSpec((2, 5), "int64")], [(2, 5, 64)])
    >>> embedding(spec).bytes_read(spec)
    (2560, 80)
    """
    out, indices = op.outputs[0], op.inputs[1]
    terms = {"n": float(out.numel), "rows": float(indices.numel)}
    return Cost(0, "embedding", terms=terms, read=(out.nbytes, indices.nbytes), workspace=copy_bytes(indices))


def embedding_backward(op: OpSpec) -> Cost:
    """A table of zeros, and a row added for each index.

    >>> from .spec import TensorSpec, op
    >>> spec = op("aten::embedding_dense_backward", [(2, 5, 64), TensorSpec((2, 5), "int64")], [(1000, 64)])
    >>> embedding_backward(spec).flops
    640
    """
    g, indices, table = op.inputs[0], op.inputs[1], op.outputs[0]
    terms = {"n": float(g.numel), "table": float(table.numel), "rows": float(indices.numel)}
    copies = copy_bytes(g) + copy_bytes(indices)
    return Cost(g.numel, "embedding_backward", terms=terms, write=(table.nbytes + g.nbytes,), workspace=copies)


def embedding_bag(op: OpSpec) -> Cost:
    """Rows of a table summed a bag.

    >>> from .spec import TensorSpec, op
    >>> ins = [(1000, 64), TensorSpec((10,), "int64"), TensorSpec((2,), "int64")]
    >>> embedding_bag(op("aten::_embedding_bag", ins, [(2, 64)])).flops
    640
    """
    table, indices = op.inputs[:2]
    moved = indices.numel * table.shape[1]
    rest = tuple(t.nbytes for t in op.inputs[1:])
    terms = {"n": float(moved), "rows": float(indices.numel)}
    return Cost(moved, "embedding", terms=terms, read=(moved * table.itemsize, *rest))


def embedding_bag_backward(op: OpSpec) -> Cost:
    """A table of zeros, and for each index the gradient of its bag added to a row.

    The offsets say the bags, so an index has as many elements as the gradient has columns.

    >>> from .spec import TensorSpec, op
    >>> ins = [(2, 64), TensorSpec((10,), "int64"), TensorSpec((2,), "int64")]
    >>> embedding_bag_backward(op("aten::_embedding_bag_backward", ins, [(1000, 64)], mode=0)).flops
    640
    """
    g, indices, table = op.inputs[0], op.inputs[1], op.outputs[0]
    added = indices.numel * g.shape[-1]
    terms = {"n": float(added), "table": float(table.numel), "rows": float(indices.numel)}
    written = table.nbytes + added * g.itemsize
    return Cost(added, "embedding_backward", terms=terms, write=(written, *(t.nbytes for t in op.outputs[1:])))


def triangle(op: OpSpec) -> Cost:
    """A triangle of the source, zeros beside it.

    >>> from .spec import op
    >>> triangle(op("aten::tril", [(4, 4)], [(4, 4)])).kind
    'copy_rows'
    """
    out = first(op)
    runs = out.numel // max(out.shape[-1] if out.shape else 1, 1)
    return Cost(0, "copy_rows", terms={"n": float(out.numel), "runs": float(runs)})


def scalar_read(op: OpSpec) -> Cost:
    """One value from a tensor to Python: `item()`.

    >>> from .spec import op
    >>> scalar_read(op("aten::_local_scalar_dense", [()], [])).kind
    'item'
    """
    return Cost(0, "item", read=tuple(min(t.nbytes, t.itemsize) for t in op.inputs), calls=0)


def _named(names: str, formula: Callable[[OpSpec], Cost]) -> dict[str, Callable[[OpSpec], Cost]]:
    return {f"aten::{name}": formula for name in names.split()}


VIEWS = """view _unsafe_view reshape t transpose permute expand expand_as slice select unsqueeze squeeze detach alias
    as_strided unbind split split_with_sizes unsafe_split unsafe_split_with_sizes chunk tensor_split narrow unfold
    diagonal movedim swapaxes swapdims view_as view_as_real view_as_complex real imag flatten unflatten ravel T mT
    lift_fresh lift _reshape_alias detach_ t_ transpose_ squeeze_ unsqueeze_ as_strided_ resize_ resize_as_ set_
    requires_grad_ _conj _neg_view resolve_conj resolve_neg conj hsplit vsplit dsplit numpy_T matrix_H adjoint
    swapaxes_ swapdims_ _nested_view_from_buffer _values _indices values indices _fw_primal _make_dual
    broadcast_to atleast_1d atleast_2d atleast_3d result_type is_nonzero size stride sym_numel sym_stride
    sym_storage_offset set_data retain_grad _version is_leaf is_contiguous dim numel positive pin_memory
    is_floating_point is_complex can_cast _backward output_nr _is_zerotensor refine_names rename"""
FORMULAS: dict[str, Callable[[OpSpec], Cost]] = {
    **_named(VIEWS, view),
    **_named("empty empty_like empty_strided new_empty new_empty_strided empty_permuted", allocate),
    **_named("clone contiguous _to_copy to lift_fresh_copy view_copy expand_copy slice_copy select_copy t_copy "
             "transpose_copy permute_copy detach_copy as_strided_copy alias_copy unsqueeze_copy squeeze_copy "
             "type_as _reshape_copy unfold_copy diagonal_copy cast _cast_Float _cast_Half", clone),
    **_named("copy_ copy", copy_into),
    **_named("cat concat concatenate hstack vstack dstack stack _stack column_stack split_copy unbind_copy "
             "split_with_sizes_copy block_diag", gather_copy),
    **_named("roll flip fliplr flipud repeat tile repeat_interleave rot90 channel_shuffle pixel_shuffle "
             "pixel_unshuffle native_channel_shuffle cartesian_prod meshgrid im2col col2im", shifted),
    **_named("fill_ fill zero_ zero zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full arange "
             "linspace logspace eye scalar_tensor tril_indices triu_indices range fill_diagonal_ hann_window "
             "hamming_window blackman_window bartlett_window kaiser_window", fill),
    **_named("rand rand_like randint randint_like random_ random uniform_ uniform bernoulli_ bernoulli randperm "
             "geometric_ multinomial", random(GENERATOR)),
    # the logarithm and the sine of Box and Muller's transform, or one logarithm
    **_named("randn randn_like normal_ normal normal_functional log_normal_ cauchy_ exponential_ exponential poisson "
             "_standard_gamma", random(GENERATOR + 16)),
    **_named("native_dropout", native_dropout),
    **_named("constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
             "replication_pad2d replication_pad3d _pad_circular _pad_enum", pad),
    **_named("reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward "
             "replication_pad1d_backward replication_pad2d_backward replication_pad3d_backward", pad_backward),
    **_named("select_backward slice_backward diagonal_backward unfold_backward select_scatter slice_scatter "
             "diagonal_scatter as_strided_scatter value_selecting_reduction_backward", scatter_slice),
    **_named("index index_select gather take take_along_dim masked_select _unsafe_index _index_select "
             "_unsafe_masked_index masked_scatter_backward", index_read),
    **_named("index_put index_put_ _index_put_impl_ _unsafe_index_put index_add index_add_ index_copy index_copy_ "
             "index_fill index_fill_ scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_ "
             "index_reduce index_reduce_ put_ put masked_scatter masked_scatter_ _unsafe_masked_index_put_accumulate",
             index_write),
    **_named("embedding", embedding),
    **_named("embedding_dense_backward embedding_backward", embedding_backward),
    **_named("embedding_bag _embedding_bag _embedding_bag_forward_only", embedding_bag),
    **_named("_embedding_bag_backward _embedding_bag_dense_backward", embedding_bag_backward),
    **_named("tril triu tril_ triu_ diag diag_embed one_hot", triangle),
    **_named("_local_scalar_dense item", scalar_read),
}  # fmt: skip
del FORMULAS["aten::real"], FORMULAS["aten::imag"]
