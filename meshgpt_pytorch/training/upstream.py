"""Take up the moments of an optimizer that a trainer of meshgpt-pytorch 1.x saved."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Adam, AdamW, Optimizer

from meshgpt_pytorch.checkpoint.sharding import share_as


def load_upstream_moments(
    optimizer: Optimizer, saved: Any, model: Module, names: Sequence[str]
) -> bool:
    """Give each parameter the moments that it had, if the optimizer has any use for them.

    Optimizers save moments by number; 1.x numbered the parameters as its state dict lists them, and
    with weight decay matrices before the others.

    Args:
        optimizer: the optimizer of a trainer; its learning rate and its other settings stay.
        saved: what the file holds as the state of an optimizer, of any form.
        model: the model in training.
        names: the weights in the order of the file.

    Returns:
        whether every saved moment found its parameter; if not, none is loaded.
    """
    inner = saved.get("optimizer", saved) if isinstance(saved, Mapping) else None
    if not (isinstance(inner, Mapping) and isinstance(optimizer, (Adam, AdamW))):
        return False
    own = dict(model.named_parameters())
    trained = [own[name] for name in names if name in own and own[name].requires_grad]
    if len(inner.get("param_groups", ())) == 2:
        trained.sort(key=lambda parameter: parameter.ndim < 2)

    moments: Mapping[int, Mapping[str, Tensor]] = inner.get("state", {})
    pairs = [(trained[i], state) for i, state in moments.items() if i < len(trained)]
    if not moments or len(pairs) < len(moments) or not all(fits(*pair) for pair in pairs):
        return False
    for parameter, state in pairs:
        optimizer.state[parameter] = {
            name: share_as(item.to(parameter.device), parameter) if item.ndim else item.clone()
            for name, item in state.items()
        }
    return True


def fits(parameter: Parameter, state: Mapping[str, Tensor]) -> bool:
    """Tell whether moments have the shape of a parameter."""
    moments = (state.get("exp_avg"), state.get("exp_avg_sq"))
    return all(item is not None and item.shape == parameter.shape for item in moments)
