"""Version, installer, engines."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from kandiga_run.doctor.finding import Finding
from kandiga_run.engine import NATIVE_ARCHITECTURES, has_apple_gpu
from kandiga_run.installer import DISTRIBUTION, installation


def look_at_program() -> Iterator[Finding]:
    """Say what is installed, and how."""
    here = installation()
    number = version_of(DISTRIBUTION) or "no version known"
    yield Finding(
        "program",
        "ok",
        f"{DISTRIBUTION} {number}, installed with {here.installer}; Python "
        f"{platform.python_version()}",
        facts={
            "version": version_of(DISTRIBUTION),
            "installer": here.installer,
            "python": platform.python_version(),
        },
    )


def look_at_engines() -> Iterator[Finding]:
    """Say which engines there are, and which is taken for what."""
    families = ", ".join(NATIVE_ARCHITECTURES)
    number = version_of("mlx-lm") if find_spec("mlx") and find_spec("mlx_lm") else None
    facts = {"native": list(NATIVE_ARCHITECTURES), "mlx_lm": number, "apple_gpu": has_apple_gpu()}
    if number is None:
        text = f"native for {families}; mlx is not installed, so no other family"
        yield Finding("engines", "warning", text, "pip install mlx-lm", facts)
    elif has_apple_gpu():
        yield Finding("engines", "ok", f"mlx (mlx-lm {number}) on the Apple GPU", facts=facts)
    else:
        text = (
            f"native, on the processor, for {families}; mlx (mlx-lm {number}) for other families, "
            "slowly: there is no Apple GPU here"
        )
        yield Finding("engines", "ok", text, facts=facts)


def version_of(distribution: str) -> str | None:
    """Return the installed version, None when it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
