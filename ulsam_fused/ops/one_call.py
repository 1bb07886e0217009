"""What tools that look into modules see of a layer: one call of a module, or a message that says what to do."""

from typing import Any

from torch import Tensor
from torch.fx import Proxy

Placeholder: Any = Proxy
"""What torch.fx gives in place of a tensor, where a type checker need not know of it."""


class OneCall:
    """For layers; their `forward` asks `isinstance(x, Placeholder)` first."""

    @property
    def itself(self) -> "OneCall":
        """The layer, by a name that a torch.fx graph of the layer alone can call."""
        return self

    def traced(self, x: Any) -> Tensor:
        """The placeholder of y: to a graph the layer is a leaf, whatever tracer makes it."""
        path = x.tracer.path_of_module(self) or "itself"
        return x.tracer.create_proxy("call_module", path, (x,), {})  # type: ignore[no-any-return]

    def __prepare_scriptable__(self) -> None:
        raise TypeError(
            f"torch.jit.script cannot compile {type(self).__name__}, whose kernels TorchScript does not know: "
            "script uf.unfuse(model, inplace=False), which has ordinary layers, or use torch.jit.trace or torch.export"
        )
