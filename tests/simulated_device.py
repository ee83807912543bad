"""A device that is none: its tensors hold CPU data, and may not meet tensors of the CPU.

PyTorch lets one backend be written in Python (``PrivateUse1``). Here it is called "simulated", and
it is as strict as CUDA, without its speed: an operation over tensors of two places raises, a CPU
generator draws no numbers for it, ``numpy()`` needs ``cpu()`` first, autocast follows CUDA's list
of operations. Numbers are those of the CPU, bit for bit, and so are random numbers. What makes a
CPU wait for a GPU is noted. It cannot show what only real kernels do: their rounding, errors in
their inputs that they report later, and memory.

    with SimulatedDevice() as device:
        model.to(device.name)(batch.to(device.name)).backward()
    assert not device.waits
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

from tests.simulated_graph import GRAPH_FUNCTIONS, SimulatedGraph

NAME = "simulated"
AUTOCAST = "AutocastPrivateUse1"
ROOT = Path(__file__).parent.parent

# operations whose result has a shape, or is a number, that only the device knows
WAITING = {
    "_local_scalar_dense",
    "_unique",
    "_unique2",
    "bincount",
    "equal",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
# operations between places, or of one whose tensors may be on the CPU
CROSSING = {"_to_copy", "copy_", "_copy_from"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}

# what autocast does on CUDA: ATen/autocast_mode.h
IN_HALF_PRECISION = {
    *("_convolution", "conv1d", "conv2d", "conv3d", "conv_tbc", "convolution", "prelu"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "addmm", "addmv", "addr"),
    *("matmul", "einsum", "mm", "mv", "linalg_vecdot", "linear", "addbmm", "baddbmm", "bmm"),
    *("chain_matmul", "linalg_multi_dot", "scaled_dot_product_attention"),
}
IN_FLOAT32 = {
    *("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "tan"),
    *("reciprocal", "rsqrt", "sinh", "pow", "softplus", "layer_norm", "native_layer_norm"),
    *("rms_norm", "group_norm", "frobenius_norm", "nuclear_norm", "cosine_similarity"),
    *("nll_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "dist"),
    *("binary_cross_entropy_with_logits", "pdist", "cdist", "renorm", "logsumexp", "norm"),
    *("prod", "softmax", "log_softmax", "cumprod", "cumsum", "linalg_vector_norm", "sum"),
    *("linalg_matrix_norm",),
}
IN_THE_WIDEST = {
    *("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler"),
    *("index_put", "tensordot", "scatter_add", "cat", "stack"),
}


# what PyTorch was taught lasts as long as these do
REGISTERED: list[torch.library.Library] = []
CpuGenerator = torch.Generator


class SimulatedTensor(Tensor):
    """A tensor of the simulated device; ``data_on_cpu`` holds its values."""

    data_on_cpu: Tensor

    @staticmethod
    def __new__(cls, data: Tensor) -> "SimulatedTensor":
        tensor = Tensor._make_wrapper_subclass(
            cls,
            data.shape,
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.data_on_cpu = data
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def data(self) -> Tensor:
        """The values without their history, to be replaced as a whole."""
        return self.detach()

    @data.setter
    def data(self, value: "SimulatedTensor") -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.data_on_cpu = value.data_on_cpu

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {}, Counter())

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Copy values and kind; ``Tensor`` itself would copy the memory behind ``data_ptr``."""
        if id(self) not in memo:
            values = self.detach().clone()
            is_parameter = isinstance(self, torch.nn.Parameter)
            copied = torch.nn.Parameter(values, requires_grad=False) if is_parameter else values
            memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def data_ptr(self) -> int:
        """Tell tensors that share memory from those that do not."""
        return self.data_on_cpu.data_ptr()

    def numpy(self, *, force: bool = False) -> Any:
        """Refuse as a CUDA tensor does; ``Tensor.numpy`` itself refuses all subclasses."""
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert {self.device} device type tensor to numpy, use .cpu()")

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as what ``torch.load(..., map_location="cpu")`` would make of it."""
        return self.detach().cpu().__reduce_ex__(protocol)

    def tolist(self) -> Any:
        """Copy to the CPU first; ``Tensor.tolist`` refuses subclasses."""
        return self.cpu().tolist()


class SimulatedGenerator(CpuGenerator):
    """A source of randomness that counts as one of the simulated device."""

    known: ClassVar[dict[int, torch.Generator]] = {}

    def __new__(cls, device: Any = "cpu") -> torch.Generator:  # type: ignore[misc]
        if torch.device(device).type != NAME:
            return CpuGenerator(device)
        generator = super().__new__(cls)
        cls.known[generator._cdata] = generator
        return generator

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, 0)


class SimulatedDevice(TorchDispatchMode):
    """Makes the simulated device available inside a ``with`` block.

    name: what to pass as a device.
    waits: how often an operation made the CPU wait for the device, by place and operation.
    """

    name = NAME

    def __init__(self) -> None:
        super().__init__()
        register_backend()
        self.waits: Counter[str] = Counter()

    def __enter__(self) -> "SimulatedDevice":
        self.before = torch._C._only_lift_cpu_tensors(), torch.Generator
        # torch.tensor(..., device=...) is then seen as what it is: made on the CPU, and copied
        torch._C._set_only_lift_cpu_tensors(True)
        torch.Generator = SimulatedGenerator  # type: ignore[misc]
        # the engine counted devices at the first backward pass of this process, and has no thread
        # for this one if that came before
        self.one_thread = torch.autograd.set_multithreading_enabled(False)
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.one_thread.__exit__(*exception)
        lifts, torch.Generator = self.before  # type: ignore[misc]
        torch._C._set_only_lift_cpu_tensors(lifts)

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {}, self.waits)


class Backend(_DummyBackendModule):
    """What PyTorch asks ``torch.simulated``."""

    def __init__(self) -> None:
        vars(self).update(GRAPH_FUNCTIONS)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


@cache
def register_backend() -> None:
    """Teach this process the device; PyTorch allows that once."""
    _setup_privateuseone_for_python_backend(NAME, Backend(), _DummyPrivateUse1Hook())
    REGISTERED.append(torch.library.Library("_", "IMPL"))
    REGISTERED[0].fallback(torch.library.fallthrough_kernel, AUTOCAST)
    REGISTERED.append(torch.library.Library("aten", "IMPL"))
    for name in sorted(IN_HALF_PRECISION | IN_FLOAT32 | IN_THE_WIDEST):
        packet = getattr(torch.ops.aten, name)
        for overload in map(packet.__getattr__, packet.overloads()):
            if "out" not in {argument.name for argument in overload._schema.arguments}:
                REGISTERED[1].impl(overload, partial(run_with_autocast, overload), AUTOCAST)


def run_with_autocast(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Cast what an operation reads as CUDA's autocast does, and go on without autocast."""
    name = op._schema.name.split("::")[1]
    dtype = None
    if name in IN_HALF_PRECISION:
        dtype = torch.get_autocast_dtype(NAME)
    elif name in IN_FLOAT32 and kwargs.get("dtype") is None:
        dtype = torch.float32
    elif name in IN_THE_WIDEST:
        dtypes = [t.dtype for t in tensors_of(args) if t.is_floating_point()]
        dtype = torch.float32 if torch.float32 in dtypes else None
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    with torch._C._ExcludeDispatchKeyGuard(keys):
        if dtype is not None:
            args, kwargs = map_tensors(lambda t: cast(t, dtype), (args, kwargs))
        return op(*args, **kwargs)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a tensor of the device as autocast does: floats, but not doubles."""
    is_eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(dtype) if is_eligible and tensor.device.type == NAME else tensor


def data_of(tensor: Tensor) -> Tensor:
    """Return the values of a tensor, on the CPU."""
    return tensor.data_on_cpu if isinstance(tensor, SimulatedTensor) else tensor


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Replace the tensors in the arguments or results of an operation."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)([map_tensors(function, each) for each in value])
    if isinstance(value, dict):
        return {name: map_tensors(function, each) for name, each in value.items()}
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """List the tensors in the arguments of an operation."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for each in value for tensor in tensors_of(each)]


def run(op: Any, args: Any, kwargs: dict[str, Any], waits: Counter[str]) -> Any:
    """Run an operation on the CPU data of its tensors, after the checks that CUDA makes."""
    name = op._schema.name.split("::")[1]
    tensors = tensors_of((args, kwargs))
    on_device = [tensor for tensor in tensors if isinstance(tensor, SimulatedTensor)]
    wanted = kwargs.get("device")
    if wanted is not None:
        goes_to_device = torch.device(wanted).type == NAME
    elif name == "copy_":
        goes_to_device = isinstance(args[0], SimulatedTensor)
    else:
        goes_to_device = bool(on_device)
    if name in CROSSING:
        crosses = bool(on_device) != goes_to_device or len({t.device for t in tensors}) > 1
    else:
        crosses = False
        if on_device:
            refuse_mixed_places(op, name, args, kwargs)
    refuse_foreign_generator(op, kwargs, goes_to_device)
    has_waited = bool(on_device or crosses) and makes_wait(name, args, kwargs, crosses)
    if has_waited:
        waits[f"{calling_place()} {name}"] += 1

    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    own = {id(tensor.data_on_cpu): tensor for tensor in on_device}
    args, kwargs = map_tensors(data_of, (args, kwargs))
    graph = SimulatedGraph.current if on_device or goes_to_device else None
    if graph is None:
        result = op(*args, **kwargs)
    else:
        result = graph.record(op, args, kwargs, waits=has_waited)
    if name == "_to_copy" and crosses and not goes_to_device:
        return result.clone() if any(result is t for t in tensors_of(args)) else result
    if not goes_to_device:
        return result
    # what an operation changed in place is the tensor that came in
    return map_tensors(lambda t: own[id(t)] if id(t) in own else SimulatedTensor(t), result)


def refuse_mixed_places(op: Any, name: str, args: Any, kwargs: Any) -> None:
    """Raise where CUDA would: tensors of the CPU, but for numbers and indices."""
    strict = list(args)
    if name in INDEXING:
        # indices may be on the CPU; so may a single value
        strict = [args[0]]
        values = args[2] if len(args) > 2 else None
        if isinstance(values, Tensor) and values.ndim:
            strict.append(values)
    elif torch.Tag.pointwise in op.tags or name in ("fill_", "masked_fill", "masked_fill_"):
        # a single number may come from the CPU, but neither be written to nor be a mask
        strict = [t for t in tensors_of((args, kwargs)) if t.ndim]
        strict += written_to(op, args, kwargs)
        strict += args[:2] if name.startswith("masked_fill") else []
    else:
        strict = [args, kwargs]
    places = {tensor.device.type for tensor in tensors_of(strict)}
    if name in INDEXING and NAME not in places:
        raise RuntimeError(
            "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
        )
    if "cpu" in places:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"{NAME}:0 and cpu! (in {op})"
        )


def written_to(op: Any, args: Any, kwargs: Any) -> list[Any]:
    """List what an operation changes in place."""
    declared = op._schema.arguments
    given = {argument.name: value for argument, value in zip(declared, args, strict=False)}
    given.update(kwargs)
    names = [each.name for each in declared if each.alias_info and each.alias_info.is_write]
    return [given[name] for name in names if name in given]


def refuse_foreign_generator(op: Any, kwargs: Any, goes_to_device: bool) -> None:
    """Raise where random numbers of one place are drawn from a generator of another."""
    generator = kwargs.get("generator")
    if generator is None:
        return
    is_own = generator._cdata in SimulatedGenerator.known
    if is_own != goes_to_device:
        wanted, found = (NAME, "cpu") if goes_to_device else ("cpu", NAME)
        raise RuntimeError(
            f"Expected a '{wanted}' device type for generator but found '{found}' (in {op})"
        )


def makes_wait(name: str, args: Any, kwargs: Any, crosses: bool) -> bool:
    """Tell whether the CPU waits for the device here."""
    if name in WAITING or crosses:
        return True
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in INDEXING:
        indices = [index for index in args[1] if index is not None]
        if any(index.device.type == "cpu" for index in indices):
            return True
        # a mask is a search for its true entries, unless it only says where to put one number
        masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
        puts_number = name.startswith(("index_put", "_index_put")) and args[2].numel() == 1
        return bool(masks) and not (puts_number and len(indices) == 1)
    return False


def calling_place() -> str:
    """Name the innermost function of the package that is running, or else of the tests."""
    own = [frame for frame in frames() if frame[0].startswith("meshgpt_pytorch")]
    file, function = next(iter(own or frames()), ("elsewhere", ""))
    return f"{file} {function}"


def frames() -> Iterator[tuple[str, str]]:
    """List files of this repository and functions that are running, innermost first."""
    frame = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        # the environment may be a folder of the repository
        is_ours = path.is_relative_to(ROOT) and "site-packages" not in path.parts
        if is_ours and path != Path(__file__):
            yield str(path.relative_to(ROOT)), frame.f_code.co_qualname
        frame = frame.f_back  # type: ignore[assignment]
