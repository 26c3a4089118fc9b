"""Recurrent layers as one op: LSTM, GRU and plain RNN on the CPU, and their fused cells.

A step of a layer and direction is a matmul of the input and one of the state with the gates' weights (2 FLOPs a
multiply-add), and the gates' arithmetic (LSTM: three sigmoids, two tanh, 4 products and 4 adds an element of state).
"""

from __future__ import annotations

from collections.abc import Callable

from .elementwise import EXP, TANH
from .matmul import gemm_terms
from .spec import Cost, OpSpec, TensorSpec

__all__ = ["FORMULAS"]

SIGMOID = EXP + 3
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
# arithmetic of the gates an element of the hidden state, after the matmuls
POINTWISE = {"lstm": 3 * SIGMOID + 2 * TANH + 4 + 4, "gru": 2 * SIGMOID + TANH + 3 + 5, "rnn": TANH + 1}
MKLDNN_MODES = {0: "rnn", 1: "rnn", 2: "lstm", 3: "gru"}


def _step_flops(cell: str, inputs: int, hidden: int) -> int:
    """FLOPs of one step of one sequence.

    >>> _step_flops("lstm", 8, 16)  # 2·4·16·(8 + 16) and 65 an element
    4112
    """
    return 2 * GATES[cell] * hidden * (inputs + hidden) + POINTWISE[cell] * hidden


def mkldnn_layer(op: OpSpec) -> Cost:
    """One layer and direction; input (time, batch, features).

    >>> from .spec import op
    >>> ins = [(5, 2, 8), (64, 8), (64, 16), (64,), (64,), (2, 16), (2, 16)]
    >>> mkldnn_layer(op("aten::mkldnn_rnn_layer", ins, [(5, 2, 16), (2, 16), (2, 16), (0,)], mode=2,
    ...                 hidden_size=16)).flops
    41120
    """
    return _layer(op.inputs[0], op.inputs[1], MKLDNN_MODES[op.attr("mode", 2)], passes=1)


def mkldnn_layer_backward(op: OpSpec) -> Cost:
    """Twice the forward's matmuls, and the gates' derivatives as often as the gates.

    >>> from .spec import op
    >>> ins = [(5, 2, 8), (64, 8), (64, 16), (64,), (64,), (2, 16)]
    >>> mkldnn_layer_backward(op("aten::mkldnn_rnn_layer_backward", ins, [(5, 2, 8)], mode=2, hidden_size=16)).flops
    82240
    """
    return _layer(op.inputs[0], op.inputs[1], MKLDNN_MODES[op.attr("mode", 2)], passes=2)


def _layer(x: TensorSpec, weight: TensorSpec, cell: str, passes: int) -> Cost:
    hidden = weight.shape[0] // GATES[cell]
    inputs = weight.shape[1]
    steps = x.numel // max(x.shape[-1], 1)
    terms = gemm_terms(steps, GATES[cell] * hidden, inputs + hidden)
    return Cost(
        passes * steps * _step_flops(cell, inputs, hidden),
        f"rnn_{cell}" + ("_backward" if passes == 2 else ""),
        terms={key: passes * value for key, value in terms.items()} | {"steps": float(passes * steps)},
        # both weights reordered, and states and gates of every step
        workspace=(weight.shape[0] * (inputs + hidden + 1) + steps * hidden * (GATES[cell] + 5)) * x.itemsize,
        calls=passes,
    )


def whole(cell: str) -> Callable[[OpSpec], Cost]:
    """A whole stack of layers as one op, as inference mode records it."""

    def formula(op: OpSpec) -> Cost:
        """Every pair of weight matrices is one layer and direction.

        >>> from .spec import op
        >>> ins = [(5, 2, 8), (1, 2, 16), (1, 2, 16), (64, 8), (64, 16), (64,), (64,)]
        >>> whole("lstm")(op("aten::lstm", ins, [(5, 2, 16)], num_layers=1)).flops
        41120
        """
        x = op.inputs[0]
        steps = x.numel // max(x.shape[-1], 1)
        rows = {GATES[cell] * t.shape[-1] for t in op.inputs[1:] if len(t.shape) == 3}
        matrices = [t for t in op.inputs[1:] if len(t.shape) == 2 and t.shape[0] in rows]
        layers = matrices[::2]
        flops = sum(steps * _step_flops(cell, w.shape[1], w.shape[0] // GATES[cell]) for w in layers)
        terms: dict[str, float] = {"steps": float(steps * len(layers))}
        for w in layers:
            for key, value in gemm_terms(steps, w.shape[0], w.shape[1] + w.shape[0] // GATES[cell]).items():
                terms[key] = terms.get(key, 0.0) + value
        return Cost(flops, f"rnn_{cell}", terms=terms, calls=max(len(layers), 1))

    return formula


def cell_op(cell: str) -> Callable[[OpSpec], Cost]:
    """One step as one op: x, state(s), weights of input and state."""

    def formula(op: OpSpec) -> Cost:
        """A step of every sequence of the batch.

        >>> from .spec import op
        >>> cell_op("gru")(op("aten::gru_cell", [(2, 8), (2, 16), (48, 8), (48, 16)], [(2, 16)])).flops
        6016
        """
        x = op.inputs[0]
        weight = next(t for t in op.inputs[1:] if len(t.shape) == 2 and t.shape[1] == x.shape[1] and t != op.inputs[1])
        return _layer(x, weight, cell, passes=1)

    return formula


def fused_gates(cell: str, backward: bool) -> Callable[[OpSpec], Cost]:
    """The arithmetic of the gates alone, after the matmuls."""

    def formula(op: OpSpec) -> Cost:
        """Elements of the hidden state times the gates' arithmetic.

        >>> from .spec import op
        >>> fused_gates("lstm", False)(op("aten::_thnn_fused_lstm_cell", [(2, 64), (2, 64), (2, 16)], [(2, 16)])).flops
        2080
        """
        n = op.outputs[0].numel // (GATES[cell] if backward else 1)
        kind = "elementwise_transcendental"
        return Cost(POINTWISE[cell] * n, kind, terms={"n": float(n * GATES[cell]), "runs": 1.0})

    return formula


FORMULAS: dict[str, Callable[[OpSpec], Cost]] = {
    "aten::mkldnn_rnn_layer": mkldnn_layer,
    "aten::mkldnn_rnn_layer_backward": mkldnn_layer_backward,
    "aten::lstm": whole("lstm"),
    "aten::gru": whole("gru"),
    "aten::rnn_tanh": whole("rnn"),
    "aten::rnn_relu": whole("rnn"),
    "aten::lstm_cell": cell_op("lstm"),
    "aten::gru_cell": cell_op("gru"),
    "aten::rnn_tanh_cell": cell_op("rnn"),
    "aten::rnn_relu_cell": cell_op("rnn"),
    "aten::_thnn_fused_lstm_cell": fused_gates("lstm", False),
    "aten::_thnn_fused_lstm_cell_backward": fused_gates("lstm", True),
    "aten::_thnn_fused_gru_cell": fused_gates("gru", False),
    "aten::_thnn_fused_gru_cell_backward": fused_gates("gru", True),
}
