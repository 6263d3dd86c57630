"""An opened container as a model: config, dense tensors, where its experts lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from cython_kernels import ExpertLayout
from formats import DenseTensor, KexpSet, Layout, open_set
from kandiga_run.config import Config
from kandiga_run.container.dense_watch import DenseWatch
from kandiga_run.container.file_guard import FileGuard
from kandiga_run.engine import Check
from kandiga_run.engine.arithmetic import Arithmetic
from kandiga_run.errors import RunError

#: Quantization modes whose experts the CPU kernels compute.
_KERNEL_MODES = ("affine", "none")


class Model:
    """A container opened for running. Everything large is a view of its mapped shards."""

    def __init__(self, container: KexpSet, check: Check = "first-touch") -> None:
        self.container = container
        #: config.json as it stands
        self.config: dict[str, Any] = container.config
        self.architecture = Config(self.config).text("model_type")
        #: experts a token uses, as published
        self.top_k = int(container.meta["top_k"])
        self._expert_layouts: dict[tuple[Layout, Arithmetic], ExpertLayout] = {}
        self.files = FileGuard(container)
        self.dense_watch = DenseWatch(container, check)

    @classmethod
    def open(cls, path: str | Path, check: Check = "first-touch") -> Model:
        """Open a container folder, or the folder of one of its .kexp files.

        check: of the dense weights; that of experts is their store's.

        Raises `formats.KexpError` when it is damaged, OSError when it is missing.
        """
        container = open_set(Path(path))
        try:
            return cls(container, check)
        except BaseException:
            container.close()
            raise

    @property
    def path(self) -> Path:
        """Return the folder that holds the shards, config.json and the tokenizer files."""
        return self.container.path

    @property
    def text_config(self) -> Config:
        """Return the part of the config that describes the language model, for checked reads."""
        config = Config(self.config)
        return config.section("text_config") if "text_config" in config else config

    @property
    def dense(self) -> Mapping[str, DenseTensor]:
        """Return every tensor that is not a routed expert, by its checkpoint name."""
        return self.container.dense

    def dense_array(self, name: str) -> NDArray[Any]:
        """Return a read-only view of a dense tensor; bf16 comes as uint16."""
        return self.container.dense_array(name)

    @property
    def max_num_experts(self) -> int:
        """Return the number of experts of the layer that has most."""
        return max(
            (self.container.num_experts(layer) for layer in self.container.layers), default=0
        )

    @property
    def expert_bytes(self) -> int:
        """Return the size of all routed experts on disk."""
        return sum(
            self.container.num_experts(layer) * self.container.layout(layer).block_bytes
            for layer in self.container.layers
        )

    def expert_layout(self, layer: int, arithmetic: Arithmetic = "exact") -> ExpertLayout:
        """Return where the parts of this layer's experts lie, as the CPU kernels take it.

        RunError when the kernels do not compute experts of this form.
        """
        layout = self.container.layout(layer)
        key = (layout, arithmetic)
        if key not in self._expert_layouts:
            self._expert_layouts[key] = _kernel_layout(layout, layer, arithmetic)
        return self._expert_layouts[key]

    def close(self) -> None:
        """Unmap the container. Views handed out before must not be used any more."""
        self._expert_layouts.clear()
        self.dense_watch.close()
        self.files.close()
        self.container.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _kernel_layout(layout: Layout, layer: int, arithmetic: Arithmetic) -> ExpertLayout:
    for part in layout.parts:
        if part.mode not in _KERNEL_MODES:
            raise RunError(
                f"layer {layer}: experts are quantized as {part.mode}, which the native engine "
                "does not compute; use --engine mlx"
            )
    gate, down = layout.part("gate", "weight"), layout.part("down", "weight")
    if gate is None or down is None:
        projections = sorted({part.projection for part in layout.parts})
        raise RunError(
            f"layer {layer}: experts made of {', '.join(projections)}, the native engine computes "
            "gate, up and down; use --engine mlx"
        )
    parts = {
        (part.projection, part.role): {
            "offset_bytes": part.offset_bytes,
            "dtype": part.dtype,
            "shape": part.shape,
            "bits": part.bits,
            "group_size": part.group_size,
            "mode": part.mode,
        }
        for part in layout.parts
    }
    try:
        return ExpertLayout(
            parts,
            hidden_size=down.shape[0],
            moe_intermediate_size=gate.shape[0],
            arithmetic=arithmetic,
        )
    except ValueError as error:
        raise RunError(f"layer {layer}: {error}; use --engine mlx") from error
