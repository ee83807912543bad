"""Products of a few rows with a large matrix, as a step of generation needs them.

Such a product takes as long as reading its weights from memory does, so what counts is the layout
and the width of the weights, and a kernel that reads them at full speed. On the CPU:

- one row in float32: rows of weights along their longer axis (half the time of the other layout
  where a library has no kernel of its own for it);
- several rows, or bfloat16: weights packed by oneDNN;
- float16, and bfloat16 for a few rows: packed by fbgemm in float16, with sums in float32;
- int8: packed by fbgemm, a scale for each output and for each row of the input.

Input and output are in float32, or wider if the weights are. Weights are read when a step is
built, and again when the next is.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

StepLinear = Callable[[Tensor], Tensor]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# rows up to which fbgemm's float16 is quicker than oneDNN's bfloat16
FEW_ROWS = 4
PACKED_BY_ONEDNN = (torch.float32, torch.bfloat16)
WHOLE_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Precision:
    """What the weights of products are kept in while codes are generated.

    dtype: torch.float32, torch.bfloat16 or torch.float16; None is what the weights are in.
    quantize: 'int8', on the CPU alone, or None.
    """

    dtype: torch.dtype | None = None
    quantize: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in (None, *DTYPES):
            raise ValueError(
                f"dtype must be one of {', '.join(map(str, DTYPES))}, got {self.dtype}; leave it "
                "out for that of the weights"
            )
        if self.quantize not in (None, "int8"):
            raise ValueError(f"quantize must be 'int8' or None, got {self.quantize!r}")
        if self.dtype is not None and self.quantize is not None:
            raise ValueError(
                f"quantize={self.quantize!r} keeps all but the weights in float32, got "
                f"dtype={self.dtype} too; pass one of the two"
            )

    @property
    def is_that_of_the_weights(self) -> bool:
        """Whether weights are used as they are."""
        return self.dtype is None and self.quantize is None

    def check_model(self, device: torch.device, dtype: torch.dtype) -> None:
        """Refuse a model whose weights cannot be kept so.

        Args:
            device, dtype: where and what the weights are.

        Raises:
            ValueError: weights in float64; int8 elsewhere than on the CPU.
            RuntimeError: int8 on a CPU, or with a torch, that fbgemm is not made for.
        """
        if dtype == torch.float64 and not self.is_that_of_the_weights:
            raise ValueError(
                "dtype and quantize work for weights in float32 or less, got float64; leave them "
                "out, or call model.float() first"
            )
        if self.quantize is None:
            return
        if device.type != "cpu":
            raise ValueError(
                f"quantize='int8' works on the CPU, got a model on {device}; use "
                "dtype=torch.bfloat16 there"
            )
        if not has_fbgemm():
            raise RuntimeError(
                "quantize='int8' needs fbgemm, which this torch has not for this processor; use "
                "dtype=torch.bfloat16"
            )


def step_dtype(weight_dtype: torch.dtype) -> torch.dtype:
    """Return what a step computes in between products: float32, or wider if its weights are."""
    return torch.promote_types(weight_dtype, torch.float32)


def read_linear(
    weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None, precision: Precision
) -> StepLinear:
    """Read a linear layer in the layout and the kernel that suit its precision.

    Args:
        weight, bias: as of ``nn.Linear``.
        precision: what to keep the weight in.

    Returns:
        ``b d_in`` -> ``b d_out``, for few rows, without gradients.
    """
    weight = weight.detach()
    bias = None if bias is None else bias.detach().to(step_dtype(bias.dtype))
    if precision.quantize == "int8":
        return Int8Linear(weight, bias)
    dtype = weight.dtype if precision.dtype is None else precision.dtype
    if dtype == torch.float16 and weight.is_cpu and has_fbgemm():
        return HalfLinear(weight, bias)
    return FloatLinear(weight.to(dtype), bias)


def has_fbgemm() -> bool:
    """Tell whether this torch has fbgemm for this processor."""
    return "fbgemm" in torch.backends.quantized.supported_engines


class StepLinears:
    """Linear layers of a model as steps read them, kept until the weights are others.

    Packing takes as long as a hundred steps, and looking whether it is still right as long as one:
    all weights are read and summed, bit by bit, so that a change is seen however it was made.

    Args:
        precision: what to keep the weights in.
    """

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.kept: dict[tuple[int, ...], tuple[list[Tensor], StepLinear]] = {}

    def read(self, *linears: Any) -> StepLinear:
        """Read layers ``nn.Linear`` with the same input as one, their outputs side by side."""
        parameters = [
            None if parameter is None else parameter.detach()
            for linear in linears
            for parameter in (linear.weight, linear.bias)
        ]
        sums = [part for each in parameters if each is not None for part in sum_bits(each)]
        key = tuple(id(linear) for linear in linears)
        if key in self.kept:
            kept_sums, kept = self.kept[key]
            if len(sums) == len(kept_sums) and all(map(torch.equal, sums, kept_sums)):
                return kept
        step = read_linear(*join(parameters[::2], parameters[1::2]), self.precision)
        self.kept[key] = (sums, step)
        return step


def join(weights: list[Any], biases: list[Any]) -> tuple[Tensor, Tensor | None]:
    """Make one weight and one bias of several, of which some have no bias."""
    if len(weights) == 1:
        return weights[0], biases[0]
    if all(bias is None for bias in biases):
        return torch.cat(weights), None
    pairs = zip(weights, biases, strict=True)
    filled = [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in pairs]
    return torch.cat(weights), torch.cat(filled)


KEPT: WeakKeyDictionary[nn.Module, StepLinears] = WeakKeyDictionary()


def linears_of(model: nn.Module, precision: Precision) -> StepLinears:
    """Return the linear layers of a model as steps of a precision read them.

    On the CPU they are kept for the next call, those of the last precision alone, as long as the
    model lives. Elsewhere nothing is packed, so there is little to keep.
    """
    if next(model.parameters()).device.type != "cpu":
        KEPT.pop(model, None)
        return StepLinears(precision)
    linears = KEPT.get(model)
    if linears is None or linears.precision != precision:
        linears = KEPT[model] = StepLinears(precision)
    return linears


def sum_bits(parameter: Tensor) -> list[Int[Tensor, " d"]]:
    """Sum the bits of each row, and of each column, as whole numbers.

    With any one weight two of the sums change, and with the order of weights some do.
    """
    row_bytes = parameter.shape[-1] * parameter.element_size()
    whole = torch.int64 if row_bytes % 8 == 0 else WHOLE_OF_SIZE[parameter.element_size()]
    bits = parameter.contiguous().view(whole)
    return [bits.sum(dim=dim) for dim in range(bits.ndim)]


def has_onednn() -> bool:
    """Tell whether this torch can pack weights with oneDNN."""
    return torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )


class FloatLinear:
    """Weights in a floating dtype, in the layout that one row or several need.

    A layout is made when the first input of its kind comes.
    """

    def __init__(
        self, weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None
    ) -> None:
        self.weight = weight
        self.bias = None if bias is None else bias.to(weight.dtype)
        self.dtype = weight.dtype
        self.dtype_of_step = step_dtype(weight.dtype)
        self.can_pack = weight.is_cpu and self.dtype in PACKED_BY_ONEDNN and has_onednn()
        self.packs_single_rows = self.dtype != torch.float32
        # float16 has all digits of bfloat16, but not its largest numbers
        largest = torch.finfo(torch.float16).max
        is_half_enough = self.dtype == torch.bfloat16 and weight.is_cpu and has_fbgemm()
        self.has_half = is_half_enough and bool(weight.abs().amax() <= largest)
        self.half: HalfLinear | None = None
        self.is_tall = weight.is_cpu and weight.shape[0] > weight.shape[1]
        self.transposed: Tensor | None = None
        self.packed: Any = None

    def __call__(self, x: Float[Tensor, "b d_in"]) -> Float[Tensor, "b d_out"]:
        if self.dtype == self.dtype_of_step:
            return self._multiply(x)
        if self.has_half and x.shape[0] <= FEW_ROWS:
            return self._multiply_half(x)
        return self._multiply(x.to(self.dtype)).to(self.dtype_of_step)

    def _multiply(self, x: Float[Tensor, "b d_in"]) -> Float[Tensor, "b d_out"]:
        is_single = x.shape[0] == 1
        if self.can_pack and (self.packs_single_rows or not is_single):
            return self._multiply_packed(x)
        if is_single and self.is_tall:
            return self._multiply_transposed(x)
        return F.linear(x, self.weight, self.bias)

    def _multiply_half(self, x: Float[Tensor, "b d_in"]) -> Float[Tensor, "b d_out"]:
        if self.half is None:
            self.half = HalfLinear(self.weight, self.bias)
        return self.half(x)

    def _multiply_packed(self, x: Tensor) -> Tensor:
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, x.shape[0])
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def _multiply_transposed(self, x: Tensor) -> Tensor:
        if self.transposed is None:
            self.transposed = self.weight.t().contiguous()
        if self.bias is None:
            return torch.mm(x, self.transposed)
        return torch.addmm(self.bias, x, self.transposed)


class HalfLinear:
    """Weights in float16, products and sums in float32, by fbgemm."""

    def __init__(
        self, weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None
    ) -> None:
        bias = None if bias is None else bias.float()
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.float().contiguous(), bias)

    def __call__(self, x: Float[Tensor, "b d_in"]) -> Float[Tensor, "b d_out"]:
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


class Int8Linear:
    """Weights and inputs in int8, by fbgemm: a scale for each output, and for each row.

    The scale of a row is its own largest value, so that a mesh does not depend on the others of
    its batch, as it would with ``quantized.linear_dynamic``.
    """

    def __init__(
        self, weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None
    ) -> None:
        self.bias = bias
        # without VNNI, pairs of products are summed in 16 bits, which 8 bits of input overflow
        has_vnni = getattr(torch.cpu, "_is_vnni_supported", bool)()
        self.largest = 127 if has_vnni else 63
        weight = weight.float()
        scale = (weight.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        whole = (weight / scale[:, None]).round_().to(torch.int8)
        zero_point = torch.zeros(len(weight), dtype=torch.long)
        engine = torch.backends.quantized.engine
        with warnings.catch_warnings():
            # torch deprecates tensors of this kind, of which one is made to be packed
            warnings.simplefilter("ignore")
            quantized = torch._make_per_channel_quantized_tensor(
                whole, scale.double(), zero_point, 0
            )
            try:
                torch.backends.quantized.engine = "fbgemm"
                self.packed = torch.ops.quantized.linear_prepack(quantized, None)
            finally:
                torch.backends.quantized.engine = engine

    def __call__(self, x: Float[Tensor, "b d_in"]) -> Float[Tensor, "b d_out"]:
        largest = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True).clamp_min_(1e-30)
        out = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x / largest, 1 / self.largest, self.largest + 1, self.packed
        )
        if self.bias is None:
            return out * largest
        return torch.addcmul(self.bias, out, largest)
