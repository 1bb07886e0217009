"""What tools that look into modules see of a layer: one call of a module, or a message that says what to do."""

from typing import Any

from torch.fx import Proxy


class OneCall:
    """For layers; their `forward` asks `isinstance(x, Proxy)` first."""

    @property
    def itself(self) -> "OneCall":
        """The layer, by a name that a torch.fx graph of the layer alone can call."""
        return self

    def traced(self, x: Proxy) -> Any:
        """torch.fx gives a placeholder for x; to its graph the layer is a leaf, whatever tracer makes it."""
        tracer: Any = x.tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self) or "itself", (x,), {})

    def __prepare_scriptable__(self) -> None:
        raise TypeError(
            f"torch.jit.script cannot compile {type(self).__name__}, whose kernels TorchScript does not know: "
            "script uf.unfuse(model, inplace=False), which has ordinary layers, or use torch.jit.trace or torch.export"
        )
