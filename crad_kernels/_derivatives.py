"""Derivatives of the operators, of every order, in reverse and forward mode.

The algebra closes over two operators. Write S_k(v, x) for the sample with the weights
differentiated k times (k a multi-index over the axes), A_k(g, x) for its adjoint in v, and e_d for
one more derivative along component d. `sample` is S_k; `sample_backward` is the pair A_k(g, x) and
J_d = sum over channels of g * S_{k + e_d}(v, x). Every derivative of either is a sum of the two:

    ============  ==========================  ===============================================
                  with respect to v or g      with respect to x
    ============  ==========================  ===============================================
    S_k           A_k (reverse), S_k          J_d (reverse), sum_d dx_d S_{k + e_d} (forward)
    A_k           S_k (reverse), A_k          sum_d A_{k + e_d}(g dx_d) (forward)
    ============  ==========================  ===============================================

The jitter moves x by std * n, n known: with respect to std, a derivative is that with respect to x
times n, summed over the points.

The operators have their own kernel for the Autograd key, an `autograd.Function` that redispatches
below it: the compiler sees one opaque operator, and forward-mode AD works, which
`torch.library.register_autograd` does not offer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, is_anomaly_enabled, is_grad_enabled
from torch._C import (
    _AutoDispatchBelowADInplaceOrView,
    _AutoDispatchBelowAutograd,
    _get_tracing_state,
)
from torch._C._functorch import maybe_current_level
from torch._functorch.utils import enable_single_level_autograd_function, unwrap_dead_wrappers
from torch.autograd.function import _SingleLevelFunction
from torch.compiler import is_compiling

from crad_kernels import _onnx
from crad_kernels._direct import Kernels, try_first
from crad_kernels._layout import as_torch
from crad_kernels._schema import DERIVATIVE, Operators, check_tensors, library


def _raised(options: int, component: int, ndim: int) -> int:
    """Options with one more derivative along a component of the coordinates: see `_schema.pack`.

    Its order stops at 15, long after the weights of every mode have become 0.
    """
    shift = DERIVATIVE + 4 * (ndim - 1 - component)
    return options if options >> shift & 15 == 15 else options + (1 << shift)


def sum_of(terms: Sequence[Tensor | None]) -> Tensor | None:
    given = [term for term in terms if term is not None]
    return sum(given[1:], given[0]) if given else None


def _wide(*tensors: Tensor | None) -> list[Any]:
    """Half precision as float32: sums of terms are taken in it, and rounded once."""
    halves = (torch.float16, torch.bfloat16)
    return [t.float() if t is not None and t.dtype in halves else t for t in tensors]


def _to(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.to(like.dtype)


def _normals(ops: Operators, coords: Tensor, seed: Tensor) -> Tensor:
    """The noise of a call before it is scaled, in the shape and the dtype of its coordinates."""
    ndim = coords.shape[-1]
    normals: Tensor = ops.normals(seed, coords.numel() // ndim, ndim)
    return normals.to(coords.dtype).view(coords.shape)


def to_std(ops: Operators, to_coords: Tensor, coords: Tensor, seed: Tensor) -> Tensor:
    """The gradient of the jitter's standard deviations, from that of the coordinates."""
    return (to_coords * _normals(ops, coords, seed)).reshape(-1, coords.shape[-1]).sum(0)


def _moved(
    ops: Operators, coords: Tensor, seed: Tensor, d_coords: Tensor | None, d_std: Tensor | None
) -> Tensor | None:
    """The tangent of the coordinates with their jitter."""
    by_std = None if d_std is None else d_std * _normals(ops, coords, seed)
    return sum_of([d_coords, by_std])


def _sample_vjp(
    ops: Operators, needs: Sequence[bool], args: Sequence[Any], grad: Tensor | None
) -> list[Tensor | None]:
    if grad is None:
        return []
    for_values, for_coords, _, for_std = needs
    to_values, to_coords = ops.sample_backward(grad, *args, for_values, for_coords or for_std)
    return [
        to_values if for_values else None,
        to_coords if for_coords else None,
        None,
        to_std(ops, to_coords, *args[1:3]) if for_std else None,
    ]


def sample_jvp(ops: Operators, args: Sequence[Any], tangents: Sequence[Tensor | None]) -> Tensor:
    values, coords, *noise, options = args
    wide_values, d_values = _wide(values, tangents[0])
    d_coords = _moved(ops, coords, noise[0], tangents[1], tangents[3])
    terms: list[Tensor | None] = []
    if d_values is not None:
        terms.append(ops.sample(d_values, coords, *noise, options))
    if d_coords is not None:
        ndim = coords.shape[-1]
        for d in range(ndim):
            slope = ops.sample(wide_values, coords, *noise, _raised(options, d, ndim))
            terms.append(slope * d_coords[..., d, None].to(slope.dtype))
    total = _to(sum_of(terms), values)
    assert total is not None
    return total


def sample_backward_vjp(
    ops: Operators,
    needs: Sequence[bool],
    args: Sequence[Any],
    to_values: Tensor | None,
    to_coords: Tensor | None,
) -> list[Tensor | None]:
    grad, values, coords, *noise, options, want_values, want_coords = args
    for_grad, for_values, for_coords, _, for_std = needs
    moves = for_coords or for_std
    wide_grad, wide_values, to_values = _wide(grad, values, to_values)
    ndim = coords.shape[-1]
    grad_terms: list[Tensor | None] = []
    value_terms: list[Tensor | None] = []
    coord_terms: list[Tensor | None] = []
    if want_values and to_values is not None:
        if for_grad:
            grad_terms.append(ops.sample(to_values, coords, *noise, options))
        if moves:
            coord_terms.append(
                ops.sample_backward(wide_grad, to_values, coords, *noise, options, False, True)[1]
            )
    if want_coords and to_coords is not None:
        for d in range(ndim):
            share = to_coords[..., d, None].to(wide_grad.dtype)
            raised = _raised(options, d, ndim)
            if for_grad:
                grad_terms.append(share * ops.sample(wide_values, coords, *noise, raised))
            if for_values or moves:
                value_term, coord_term = ops.sample_backward(
                    wide_grad * share, wide_values, coords, *noise, raised, for_values, moves
                )
                value_terms.append(value_term if for_values else None)
                coord_terms.append(coord_term if moves else None)
    total = sum_of(coord_terms)
    return [
        _to(sum_of(grad_terms), grad),
        _to(sum_of(value_terms), values),
        total if for_coords else None,
        None,
        to_std(ops, total, coords, noise[0]) if for_std and total is not None else None,
    ]


def sample_backward_jvp(
    ops: Operators, args: Sequence[Any], tangents: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    grad, values, coords, *noise, options, want_values, want_coords = args
    wide_grad, wide_values, d_grad, d_values = _wide(grad, values, *tangents[:2])
    d_coords = _moved(ops, coords, noise[0], tangents[2], tangents[4])
    wanted = (want_values, want_coords)
    ndim = coords.shape[-1]
    terms: list[tuple[Tensor | None, Tensor | None]] = []
    if d_grad is not None:
        terms.append(ops.sample_backward(d_grad, wide_values, coords, *noise, options, *wanted))
    if d_values is not None and want_coords:
        _, by_values = ops.sample_backward(
            wide_grad, d_values, coords, *noise, options, False, True
        )
        terms.append((None, by_values))
    if d_coords is not None:
        for d in range(ndim):
            share = wide_grad * d_coords[..., d, None].to(wide_grad.dtype)
            raised = _raised(options, d, ndim)
            terms.append(ops.sample_backward(share, wide_values, coords, *noise, raised, *wanted))
    to_values = _to(sum_of([term[0] for term in terms]), values)
    to_coords = sum_of([term[1] for term in terms])
    return (
        values.new_zeros(values.shape if want_values else 0) if to_values is None else to_values,
        coords.new_zeros(coords.shape if want_coords else 0) if to_coords is None else to_coords,
    )


def _number_that_need_grad(tensors: Sequence[Tensor | None]) -> int:
    number = 0
    for tensor in tensors:  # a generator takes 0.3 us longer
        if tensor is not None and tensor.requires_grad:
            number += 1
    return number


def _is_little(tensors: Sequence[Tensor | None], channels_axis: int) -> bool:
    """Whether to compute a gradient that nobody needs is faster than to ask who needs it.

    To ask takes 25 us, forward and backward. `tensors` are those of either operator. Anomaly mode
    would look at what nobody needs.
    """
    if is_anomaly_enabled():
        return False
    values, coords = tensors[-4], tensors[-3]
    assert values is not None
    assert coords is not None
    return values.numel() + coords.numel() * values.size(channels_axis) < 1 << 17


def _needed(ctx: Any, tensors: Sequence[Tensor | None]) -> Sequence[bool]:
    """Which tensors' gradients to compute: those that this backward pass goes on with.

    PyTorch is not asked where there is one at most, or `ctx.asks` is not set.
    """
    could_need: Sequence[bool] = ctx.needs_input_grad[3:]
    if not ctx.asks or sum(could_need) == 1:
        return could_need
    functions = iter(ctx.next_functions)  # one for each tensor
    needed = []
    for tensor, could in zip(tensors, could_need, strict=True):
        function = None if tensor is None else next(functions)[0]
        needed.append(could and _will_run(function))
    return needed


def _will_run(function: Any) -> bool:
    try:
        runs: bool = torch._C._will_engine_execute_node(function)
    except RuntimeError:  # a leaf that is asked for, or another engine
        return True
    return runs


@contextmanager
def _derivatives_around() -> Iterator[None]:
    """PyTorch runs a function's parts with derivatives off; the transforms around it want them."""
    with torch.enable_grad(), fwAD._set_fwd_grad_enabled(True):
        yield


def _is_watched() -> bool:
    """Whether there is a compiler, a tracer, a transform or forward mode: they know operators."""
    return (
        is_compiling()
        or _get_tracing_state() is not None
        or maybe_current_level() is not None
        or fwAD._current_level >= 0
    )


def _apply(
    apply: Callable[..., Any],
    given: tuple[Tensor | None, ...],
    options: Sequence[Any],
    needing: int,
    channels_axis: int,
) -> Any:
    """Call a function that nothing watches, of tensors of which so many need a gradient."""
    # Of a transform that is over, as `autograd.Function` does.
    alive: Sequence[Tensor | None] = unwrap_dead_wrappers(given)
    asks = needing > 1 and not _is_little(alive, channels_axis)
    if asks:
        # PyTorch raises where `_needed` asks for a leaf, and answers for a view of it.
        alive = [
            t.view_as(t) if t is not None and t.requires_grad and t.is_leaf else t for t in alive
        ]
    return apply(None, asks, options, *alive)


class _Function(_SingleLevelFunction):
    # What `autograd.Function` has beyond its base, and compiled autograd asks for.
    _compiled_autograd_key = staticmethod(torch.autograd.Function._compiled_autograd_key)


def install_operator(
    operator: Any,
    tensors: int,
    check: Callable[..., None],
    vjp: Callable[..., list[Tensor | None]],
    jvp: Callable[..., Any],
    in_onnx: Callable[..., Any],
    direct: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Give an operator its kernel for the Autograd key, and return the shortest way to call it.

    Args:
        operator: the operator.
        tensors: how many of its arguments, the first, are tensors or None.
        check: raises unless the arguments fit together: before a transform gives them other shapes.
        vjp: from (which tensors need a gradient, arguments, cotangents) to the gradients.
        jvp: from (arguments, tangents) to the tangents of the results.
        in_onnx: what it is made of in ONNX.
        direct: its kernel as `_direct.Kernels` has it.
    """

    boxed = operator._op

    def by_dispatcher(*args: Any) -> Any:
        with _AutoDispatchBelowAutograd():
            return boxed(*args)

    straight = try_first(direct, by_dispatcher, tensors)

    def redispatch(keys: Any, *args: Any) -> Any:
        with _AutoDispatchBelowAutograd():
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *args)

    class Function(_Function):
        # `keys` is None where nothing watches, `asks` whether `_needed` is to ask PyTorch. All else
        # but tensors is one argument, for each takes time in `apply` and in the backward pass.
        @staticmethod
        def forward(
            ctx: Any, keys: Any, asks: bool, options: Sequence[Any], *given: Tensor | None
        ) -> Any:
            ctx.save_for_backward(*given)
            ctx.set_materialize_grads(False)
            ctx.asks = asks
            ctx.options = options
            if keys is None:
                return straight(*given, *options)
            ctx.save_for_forward(*given)
            with _derivatives_around():
                return redispatch(keys, *given, *options)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            given = ctx.saved_tensors
            gradients = vjp(_needed(ctx, given), (*given, *ctx.options), *grads)
            return None, None, None, *gradients, *(None,) * (tensors - len(gradients))

        @staticmethod
        def jvp(ctx: Any, _keys: Any, _asks: Any, _options: Any, *tangents: Any) -> Any:
            # Without the tangents of this level, which the rule is given: those around it stay.
            primals = [
                None if tensor is None else fwAD.unpack_dual(tensor, level=0).primal
                for tensor in ctx.saved_tensors
            ]
            with _derivatives_around():
                return jvp((*primals, *ctx.options), tangents)

    apply = cast(Any, Function).apply

    def kernel(keys: Any, *args: Any) -> Any:
        if _onnx.is_exporting():
            return in_onnx(*args)
        given = args[:tensors]
        differentiates = is_grad_enabled() and _number_that_need_grad(given) > 0
        if not (differentiates or fwAD._current_level >= 0 or maybe_current_level() is not None):
            return redispatch(keys, *args)
        with enable_single_level_autograd_function():
            return apply(keys, True, args[tensors:], *given)

    library.impl(operator, kernel, "Autograd", with_keyset=True)

    def call(*args: Any) -> Any:
        """The operator; straight to what the kernel does where the dispatcher would go there.

        The dispatcher converts all arguments to and from Python once more: for 1 point on the CPU
        without gradient it takes 7 us, this 3.5 us.
        """
        if _is_watched():
            check(*args)
            return operator(*args)
        given = args[:tensors]
        needing = _number_that_need_grad(given) if is_grad_enabled() else 0
        if not needing:
            return straight(*args)
        return _apply(apply, given, args[tensors:], needing, -1)

    return call


def _install_grid_sample(
    operator: Any, calls: Operators, direct: Kernels | None
) -> Callable[..., Tensor]:
    """Return the shortest way to `sample` with channels first, laid out as torch does.

    To move the axes takes 11 us, forward and backward, where autograd records it, and 5 us here.
    """

    boxed = operator._op

    def by_dispatcher(input: Tensor, *rest: Any) -> Tensor:
        # Below what keeps track of views, too: the result is not to be known as one.
        with _AutoDispatchBelowADInplaceOrView():
            values = input.movedim(1, -1)
            return as_torch(boxed(values, *rest), values, input)

    def backward_by_calls(grad: Tensor, input: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        to_values, to_coords = calls.sample_backward(
            grad.movedim(1, -1), input.movedim(1, -1), *rest
        )
        return to_values.movedim(-1, 1) if rest[-2] else to_values, to_coords

    straight = try_first(direct and direct.grid_sample, by_dispatcher, 4)
    straight_backward = try_first(direct and direct.grid_sample_backward, backward_by_calls, 5)

    def backward(*args: Any) -> tuple[Tensor, Tensor]:
        """`sample_backward` with channels first, which has derivatives where they are recorded."""
        run = backward_by_calls if is_grad_enabled() or _is_watched() else straight_backward
        gradients: tuple[Tensor, Tensor] = run(*args)
        return gradients

    channels_first = replace(calls, sample_backward=backward)

    class Function(_Function):
        @staticmethod
        def forward(ctx: Any, _: None, asks: bool, options: Sequence[Any], *given: Any) -> Tensor:
            ctx.save_for_backward(*given)
            ctx.asks = asks
            ctx.options = options
            out: Tensor = straight(*given, *options)
            return out

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            given = ctx.saved_tensors
            args = (*given, *ctx.options)
            gradients = _sample_vjp(channels_first, _needed(ctx, given), args, grad)
            return None, None, None, *gradients

    apply = cast(Any, Function).apply

    def call(*args: Any) -> Tensor:
        if _is_watched():
            input, *rest = args
            values = input.movedim(1, -1)
            return as_torch(calls.sample(values, *rest), values, input)
        given = args[:4]
        needing = _number_that_need_grad(given) if is_grad_enabled() else 0
        out: Tensor = _apply(apply, given, args[4:], needing, 1) if needing else straight(*args)
        return out

    return call


@dataclass
class Calls(Operators):
    """The shortest ways to call a backend's operators, with their derivatives.

    Attributes:
        grid_sample: `sample` of values, and with a result, whose channels come first.
    """

    grid_sample: Any


def install(ops: Operators, direct: Kernels | None) -> Calls:
    """Give the operators of a backend their derivatives; return the shortest way to call them.

    Args:
        ops: the operators.
        direct: their kernels, if they can be called around the dispatcher.
    """
    calls = Calls(**vars(ops), grid_sample=None)
    calls.grid_sample = _install_grid_sample(ops.sample, calls, direct)
    calls.sample = install_operator(
        ops.sample,
        4,
        lambda values, coords, *_: check_tensors(values, coords),
        partial(_sample_vjp, calls),
        partial(sample_jvp, calls),
        _onnx.sample,
        direct and direct.sample,
    )
    calls.sample_backward = install_operator(
        ops.sample_backward,
        5,
        lambda *_: None,  # they have been `sample`'s
        partial(sample_backward_vjp, calls),
        partial(sample_backward_jvp, calls),
        _onnx.refuse_derivative,
        direct and direct.sample_backward,
    )
    return calls
