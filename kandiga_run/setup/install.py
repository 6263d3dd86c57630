"""The steps of a setup. Each is done only if it is still to be done, so the same call goes on."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from formats.manifest import MANIFEST_NAME
from formats.published import local_set
from kandiga_run.default_model import default_model, remember_default_model
from kandiga_run.errors import RunError
from kandiga_run.installer import source_folder
from kandiga_run.setup.packer import run_packer, run_step
from kandiga_run.setup.target import Target
from kandiga_run.terminal.output import Output

#: What `demo.prepare` calls the checkpoint, and the name of what is packed of it.
DEMO_CHECKPOINT = "smollm2-8x135m-mlx"
_DEMO_FOLDER = "demo"


def is_installed(target: Target) -> bool:
    """Whether nothing is left to download or to pack."""
    return target.dest is not None and (target.dest / MANIFEST_NAME).is_file()


def install(target: Target, output: Output) -> None:
    """Bring the model here, check every byte of it, remember it.

    Raises:
        StepFailedError: a process of ours has said why it cannot go on.
        HubError, KexpError, OSError, RunError: something of our own cannot.
    """
    if target.dest is None:
        local_set(target.source, say=output.notice if output.stderr.isatty() else None)
    else:
        _pack(target, target.dest, output)
    remember_default_model(target.default_model)


def _pack(target: Target, dest: Path, output: Output) -> None:
    if not is_installed(target):
        dest.parent.mkdir(parents=True, exist_ok=True)
        output.notice(f"packing {target.source} into {dest}")
        source, _, revision = target.source.partition("@")
        if Path(target.source).exists():
            source, revision = target.source, ""
        options = ["--revision", revision] if revision else []
        run_packer(
            "convert", source, str(dest), *options, messages=output.stderr, quiet=output.is_quiet
        )
    # What is the default model already was verified when it became that.
    if default_model() != target.default_model:
        output.notice("checking every byte")
        run_packer("verify", str(dest), messages=output.stderr, quiet=output.is_quiet)


def prepare_demo(models: Path, output: Output) -> Path:
    """Return the demo's small real model, packed already, or its checkpoint, made if need be.

    models: the folder of packed models.

    RunError where there is no source tree, which has the code for it. StepFailedError.
    """
    packed = models / DEMO_CHECKPOINT
    if (packed / MANIFEST_NAME).is_file():
        return packed
    root, folder = _source_tree(), models / _DEMO_FOLDER
    output.notice("making the demo's model: SmolLM2-135M as a mixture of 8 experts a layer")
    command = [sys.executable, "-m", "demo.prepare", "--work", str(folder)]
    run_step(command, messages=output.stderr, folder=root)
    return folder / DEMO_CHECKPOINT


def forget_demo(models: Path, target: Target) -> None:
    """Remove what the demo's model was made of, once it is packed: the disk holds it once."""
    folder = models / _DEMO_FOLDER
    if Path(target.source).parent == folder and is_installed(target):
        shutil.rmtree(folder)


def _source_tree() -> Path:
    """Return the clone that this package lies in, or was installed from."""
    for root in (Path(__file__).resolve().parents[2], source_folder()):
        if root is not None and (root / "demo" / "prepare.py").is_file():
            return root
    raise RunError(
        "the demo's model is made by the source tree, and this is an installed package: clone the "
        "repository and run `make demo`"
    )
