"""Which way a layer's experts are computed."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from mlx_lm.models.switch_layers import SwiGLU, SwitchGLU

from formats import Layout
from kandiga_run.container import Model
from kandiga_run.errors import RunError
from kandiga_run.mlx_engine.on_kernels import KernelExperts
from kandiga_run.mlx_engine.on_mlx import StackedExperts, Staging
from kandiga_run.mlx_engine.streamed import ExpertCompute

#: "kernels": cython_kernels on the CPU, where the store put the experts. "mlx": mlx-lm's own
#: module on the device, on a copy. "auto": the kernels wherever they compute the same function.
ExpertsOn = Literal["auto", "kernels", "mlx"]


class ComputeChooser:
    """Makes an ExpertCompute for each layer; layers of one layout share buffers."""

    def __init__(self, model: Model, experts_on: ExpertsOn, wave_bytes: int) -> None:
        self._model = model
        self._experts_on = experts_on
        self._wave_bytes = wave_bytes
        self._staging: dict[Layout, Staging] = {}
        self._kernels: dict[Layout, KernelExperts] = {}
        #: how many layers are computed which way
        self.chosen: Counter[str] = Counter()

    @property
    def staging_bytes(self) -> int:
        """Return the most that the buffers of all layers may take."""
        return sum(staging.max_bytes for staging in self._staging.values())

    def compute_for(self, layer: int, module: Any) -> ExpertCompute:
        """Return how to compute a layer whose experts mlx-lm keeps in `module`.

        RunError when the kernels were asked for and cannot.
        """
        compute = self._on_kernels(layer, module) or self._on_mlx(layer, module)
        self.chosen[compute.name] += 1
        return compute

    def _on_kernels(self, layer: int, module: Any) -> KernelExperts | None:
        if self._experts_on == "mlx":
            return None
        try:
            _require_plain_swiglu(layer, module)
            expert_layout = self._model.expert_layout(layer)
        except RunError:
            if self._experts_on == "kernels":
                raise
            return None
        layout = self._model.container.layout(layer)
        if layout not in self._kernels:
            self._kernels[layout] = KernelExperts(expert_layout, layout)
        return self._kernels[layout]

    def _on_mlx(self, layer: int, module: Any) -> StackedExperts:
        layout = self._model.container.layout(layer)
        if layout not in self._staging:
            self._staging[layout] = Staging(
                layout, self._model.container.num_experts(layer), wave_bytes=self._wave_bytes
            )
        return StackedExperts(module, self._staging[layout])


def _require_plain_swiglu(layer: int, module: Any) -> None:
    # The exact classes: a subclass, or any other activation, computes something else.
    activation = getattr(module, "activation", None)
    if type(module) is not SwitchGLU or type(activation) is not SwiGLU:
        raise RunError(
            f"layer {layer}: {type(module).__name__} with {type(activation).__name__}, where the "
            "kernels compute SwitchGLU with SwiGLU"
        )
