"""LSTM, GRU and RNN: both directions, initial states, peepholes, clipping, lengths, layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from onnxslim.runtime.training.operators.table import Computation, NodeForm, operator

_Activation = Callable[[Tensor], Tensor]
_Cell = Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]]
"""The projected input of a step (N, gates · H) and the states (N, H) to the new states, h first."""

_ACTIVATIONS: Final[dict[str, Callable[[Tensor, float, float], Tensor]]] = {
    "Relu": lambda x, a, b: torch.relu(x),
    "Tanh": lambda x, a, b: torch.tanh(x),
    "Sigmoid": lambda x, a, b: torch.sigmoid(x),
    "Affine": lambda x, a, b: a * x + b,
    "LeakyRelu": lambda x, a, b: functional.leaky_relu(x, a),
    "ThresholdedRelu": lambda x, a, b: functional.threshold(x, a, 0.0),
    "ScaledTanh": lambda x, a, b: a * torch.tanh(b * x),
    "HardSigmoid": lambda x, a, b: torch.clamp(a * x + b, 0.0, 1.0),
    "Elu": lambda x, a, b: functional.elu(x, a),
    "Softsign": lambda x, a, b: functional.softsign(x),
    "Softplus": lambda x, a, b: functional.softplus(x),
}
_ALPHA: Final = {
    "Affine": 1.0,
    "LeakyRelu": 0.01,
    "ThresholdedRelu": 1.0,
    "ScaledTanh": 1.0,
    "HardSigmoid": 0.2,
    "Elu": 1.0,
}
_BETA: Final = {"HardSigmoid": 0.5, "ScaledTanh": 1.0}


@dataclass(frozen=True)
class _Network:
    """What LSTM, GRU and RNN have in common.

    Attributes:
        hidden: H, the size of the state.
        directions: in which sequences are read, True for backwards.
        activations: for each direction.
        clip: bound of what activations take; None: no bound.
        is_batch_first: whether tensors are (N, T, ...) rather than (T, N, ...).
        states: number of states: 2 for LSTM, else 1.
    """

    hidden: int
    directions: tuple[bool, ...]
    activations: tuple[tuple[_Activation, ...], ...]
    clip: float | None
    is_batch_first: bool
    states: int

    def run(
        self,
        x: Tensor,
        lengths: Tensor | None,
        initial: Sequence[Tensor | None],
        project: Callable[[int, Tensor], Tensor],
        cell: Callable[[int], _Cell],
    ) -> tuple[Tensor, ...]:
        """All outputs: Y, Y_h and, for LSTM, Y_c.

        Args:
            x: the input.
            lengths: of the sequences; None: they are all whole.
            initial: the states to begin with; None: zeros.
            project: the input of all steps, (T, N, I), as gates (T, N, gates · H), by direction.
            cell: one step, by direction.
        """
        x = x.transpose(0, 1) if self.is_batch_first else x
        outputs, finals = [], []
        for direction, is_backwards in enumerate(self.directions):
            states = [self._initial(state, direction, x) for state in initial]
            source = _reversed(x, lengths) if is_backwards else x
            steps = project(direction, source).unbind(0)
            found, states = self._steps(steps, states, cell(direction), lengths)
            outputs.append(_reversed(found, lengths) if is_backwards else found)
            finals.append(states)
        y = torch.stack(outputs, 1)  # (T, directions, N, H)
        last = [torch.stack(states, 0) for states in zip(*finals, strict=True)]
        if self.is_batch_first:
            y, last = y.permute(2, 0, 1, 3), [state.transpose(0, 1) for state in last]
        return (y, *last)

    def _initial(self, state: Tensor | None, direction: int, x: Tensor) -> Tensor:
        if state is None:
            return x.new_zeros(x.shape[1], self.hidden)
        return state[:, direction] if self.is_batch_first else state[direction]

    def _steps(
        self,
        steps: Sequence[Tensor],
        states: list[Tensor],
        cell: _Cell,
        lengths: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        outputs = []
        for number, step in enumerate(steps):
            new = list(cell(step, states))
            if lengths is None:
                states = new
                outputs.append(new[0])
                continue
            runs = (lengths > number)[:, None]
            states = [torch.where(runs, n, old) for n, old in zip(new, states, strict=True)]
            outputs.append(torch.where(runs, new[0], 0))
        if not outputs:
            return states[0].new_zeros(0, *states[0].shape), states
        return torch.stack(outputs), states

    def bounded(self, x: Tensor) -> Tensor:
        """`x` within the bound of what activations take."""
        return x if self.clip is None else torch.clamp(x, -self.clip, self.clip)


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """`x` (T, N, ...) with the beginning of each sequence, as long as it is, turned round."""
    if lengths is None:
        return torch.flip(x, [0])
    steps = torch.arange(x.shape[0], device=x.device)[:, None]
    order = torch.where(steps < lengths[None], lengths[None] - 1 - steps, steps)
    return torch.gather(x, 0, order[..., None].expand_as(x))


def _network(form: NodeForm, defaults: Sequence[str], states: int = 1) -> _Network:
    kind = form.text("direction", "forward")
    directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[kind]
    names = form.texts("activations") or [*defaults] * len(directions)
    alphas, betas = form.numbers("activation_alpha") or [], form.numbers("activation_beta") or []
    each = len(defaults)
    found: list[_Activation] = []
    for name in names:
        name = name[:1].upper() + name[1:]
        if name not in _ACTIVATIONS:
            raise form.unsupported(f"no activation `{name}` is known")
        # the lists have values only for those activations that take one
        alpha = alphas.pop(0) if name in _ALPHA and alphas else _ALPHA.get(name, 0.0)
        beta = betas.pop(0) if name in (*_BETA, "Affine") and betas else _BETA.get(name, 0.0)
        found.append(_activation(name, alpha, beta))
    return _Network(
        form.integer("hidden_size"),
        directions,
        tuple(tuple(found[d * each : (d + 1) * each]) for d in range(len(directions))),
        form.number("clip") if form.has("clip") else None,
        bool(form.integer("layout")),
        states,
    )


def _activation(name: str, alpha: float, beta: float) -> _Activation:
    function = _ACTIVATIONS[name]
    plain = {"Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Relu": torch.relu}.get(name)
    return plain or (lambda x: function(x, alpha, beta))


def _halves(b: Tensor | None, direction: int) -> tuple[Tensor | None, Tensor | None]:
    """The biases of the input and of the state."""
    if b is None:
        return None, None
    first, second = b[direction].chunk(2)
    return first, second


@operator("LSTM", 7, 14, 22)
def _lstm(form: NodeForm) -> Computation:
    return long_short_term_memory(form, lambda x: x)


def long_short_term_memory(form: NodeForm, through: Callable[[Tensor], Tensor]) -> Computation:
    """The LSTM of a node; inputs and states go through a function before they are multiplied."""
    net = _network(form, ("Sigmoid", "Tanh", "Tanh"), states=2)
    couples = bool(form.integer("input_forget"))

    def run(
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None = None,
        lengths: Tensor | None = None,
        h: Tensor | None = None,
        c: Tensor | None = None,
        peepholes: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        def project(direction: int, source: Tensor) -> Tensor:
            of_input, of_state = _halves(b, direction)
            both = None if of_input is None else of_input + of_state
            return functional.linear(through(source), w[direction], both)

        def cell(direction: int) -> _Cell:
            f, g, k = net.activations[direction]
            recurrence = r[direction].T
            p = None if peepholes is None else peepholes[direction].chunk(3)  # of i, o, f

            def step(gates: Tensor, states: Sequence[Tensor]) -> Sequence[Tensor]:
                hidden, memory = states
                i, o, forget, new = torch.addmm(gates, through(hidden), recurrence).chunk(4, -1)
                if p is not None:
                    i, forget = i + p[0] * memory, forget + p[2] * memory
                i = f(net.bounded(i))
                forget = 1 - i if couples else f(net.bounded(forget))
                memory = forget * memory + i * g(net.bounded(new))
                o = o if p is None else o + p[1] * memory
                return f(net.bounded(o)) * k(memory), memory

            return step

        return net.run(x, lengths, (h, c), project, cell)

    return run


@operator("GRU", 7, 14, 22)
def _gru(form: NodeForm) -> Computation:
    net = _network(form, ("Sigmoid", "Tanh"))
    resets_after = bool(form.integer("linear_before_reset"))

    def run(
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None = None,
        lengths: Tensor | None = None,
        h: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        def project(direction: int, source: Tensor) -> Tensor:
            return functional.linear(source, w[direction], _halves(b, direction)[0])

        def cell(direction: int) -> _Cell:
            f, g = net.activations[direction]
            size = 2 * net.hidden
            of_gates, of_new = r[direction][:size], r[direction][size:]
            bias = _halves(b, direction)[1]
            gates_bias, new_bias = (None, None) if bias is None else (bias[:size], bias[size:])

            def step(gates: Tensor, states: Sequence[Tensor]) -> Sequence[Tensor]:
                (hidden,) = states
                both = gates[:, :size] + functional.linear(hidden, of_gates, gates_bias)
                z, reset = f(net.bounded(both)).chunk(2, -1)
                if resets_after:
                    inner = reset * functional.linear(hidden, of_new, new_bias)
                else:
                    inner = functional.linear(reset * hidden, of_new, new_bias)
                new = g(net.bounded(gates[:, size:] + inner))
                return ((1 - z) * new + z * hidden,)

            return step

        return net.run(x, lengths, (h,), project, cell)

    return run


@operator("RNN", 7, 14, 22)
def _rnn(form: NodeForm) -> Computation:
    net = _network(form, ("Tanh",))

    def run(
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None = None,
        lengths: Tensor | None = None,
        h: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        def project(direction: int, source: Tensor) -> Tensor:
            return functional.linear(source, w[direction], _halves(b, direction)[0])

        def cell(direction: int) -> _Cell:
            (f,) = net.activations[direction]
            bias = _halves(b, direction)[1]

            def step(gates: Tensor, states: Sequence[Tensor]) -> Sequence[Tensor]:
                inner = gates + functional.linear(states[0], r[direction], bias)
                return (f(net.bounded(inner)),)

            return step

        return net.run(x, lengths, (h,), project, cell)

    return run
