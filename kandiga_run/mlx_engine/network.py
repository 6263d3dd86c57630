"""mlx-lm's model with everything in memory but its routed experts, which are streamed."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from kandiga_run.container import Model
from kandiga_run.errors import RunError
from kandiga_run.experts.store import ExpertStore
from kandiga_run.mlx_engine.build import build_model, layer_of, replace_module, switch_modules
from kandiga_run.mlx_engine.choose import ComputeChooser, ExpertsOn
from kandiga_run.mlx_engine.head import install_switch
from kandiga_run.mlx_engine.on_mlx import WAVE_BYTES
from kandiga_run.mlx_engine.precision import raise_to_float32
from kandiga_run.mlx_engine.streamed import StreamedExperts
from kandiga_run.mlx_engine.weights import StandIns


class Network:
    """The model as a callable of mlx-lm: `module(tokens, cache=...)`.

    head: whether the next call computes all rows of logits or the last.
    experts_on: how many layers compute their experts which way, such as {"kernels": 24}.
    """

    def __init__(
        self,
        model: Model,
        *,
        top_k: int | None = None,
        experts_on: ExpertsOn = "auto",
        float32: bool | None = None,
        wave_bytes: int = WAVE_BYTES,
    ) -> None:
        """Build the model and read its dense weights into mlx arrays.

        Args:
            top_k: experts a token uses; None as published.
            experts_on: how to compute experts.
            float32: compute in float32 whatever the checkpoint's dtype; None: where mlx has no GPU.
            wave_bytes: experts given to mlx-lm's module at a time.

        Raises RunError when mlx-lm cannot build the model, or the family keeps its experts in a
        way that cannot be streamed.
        """
        stand_ins = StandIns.of(model.container)
        self.module = build_model(model, stand_ins, top_k)
        chooser = ComputeChooser(model, experts_on, wave_bytes)
        self._streamed = _stream_experts(self.module, stand_ins, chooser, top_k)
        self.experts_on = dict(chooser.chosen)
        self._staging_bytes = chooser.staging_bytes
        self._answer_bytes_per_token = _answer_bytes_per_token(model, top_k or model.top_k)
        if not self._streamed:
            raise RunError(
                f"{model.architecture}: mlx-lm's class of this family has no SwitchGLU or "
                "SwitchMLP whose experts could be streamed"
            )
        if float32 if float32 is not None else mx.default_device() == mx.cpu:
            raise_to_float32(self.module)
        self.head = install_switch(self.module)
        mx.eval(self.module.parameters(), _constants(self.module))

    @property
    def nbytes(self) -> int:
        """Return the size of the dense weights in memory."""
        return sum(array.nbytes for _, array in tree_flatten(self.module.parameters()))

    def buffer_bytes(self, num_tokens: int) -> int:
        """Estimate the memory a forward call of so many tokens takes beside weights and caches.

        The two large ones: what the experts answer, as numpy and as mlx array, and the experts
        stacked for mlx-lm's module, likewise twice.
        """
        answers = num_tokens * self._answer_bytes_per_token
        return 2 * (answers + self._staging_bytes)

    def read_from(self, store: ExpertStore) -> None:
        """Take experts from this store."""
        for streamed in self._streamed:
            streamed.read_from(store)


def _constants(module: Any) -> list[mx.array]:
    """Return the arrays that modules hold beside their parameters, such as frequencies of rope.

    Left to the first call they are computed in the thread that made them, and mlx refuses to when
    another one, such as a server's, calls: "There is no Stream(cpu, 0) in current thread".
    """
    held = [[*part.values(), *vars(part).values()] for part in module.modules()]
    return [
        value for values in held for _, value in tree_flatten(values) if isinstance(value, mx.array)
    ]


def _answer_bytes_per_token(model: Model, top_k: int) -> int:
    """Return the float32 bytes of what a token's K experts answer, in the widest layer."""
    widths = [
        part.shape[0]
        for layer in model.container.layers
        for part in model.container.layout(layer).parts
        if part.projection in ("down", "fc2") and part.role == "weight"
    ]
    return top_k * max(widths) * 4


def _stream_experts(
    network: Any, stand_ins: StandIns, chooser: ComputeChooser, top_k: int | None
) -> list[StreamedExperts]:
    streamed = []
    for path, module in switch_modules(network):
        layer = layer_of(path, module, stand_ins)
        streamed.append(StreamedExperts(layer, top_k, module, chooser.compute_for(layer, module)))
        replace_module(network, path, streamed[-1])
    return streamed
