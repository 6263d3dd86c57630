"""The table of models in the README is what the forecast says today."""

from pathlib import Path

from kandiga_run.forecast.ceilings import MeasuredCeilings
from kandiga_run.forecast.forecast import least_expert_bytes, memory_needs
from kandiga_run.forecast.presets import PRESETS, Preset
from kandiga_run.forecast.speed import MEMORY_SHARES, decode_forecast
from kandiga_run.sizes import format_size

README = Path(__file__).resolve().parents[2] / "README.md"
GB = 10**9
MACHINE = MeasuredCeilings(38e9, 3e9, "", "")
BUDGETS = (4 * GB, 8 * GB, 16 * GB, 32 * GB)
CONTEXT_TOKENS = 8192


def row(preset: Preset) -> str:
    shape = preset.shape
    needs = memory_needs(shape, CONTEXT_TOKENS, "auto")
    speeds = []
    for budget in BUDGETS:
        room = budget - needs.smallest + least_expert_bytes(shape)
        told = decode_forecast(
            shape, MACHINE, expert_bytes_in_memory=room, state_bytes=needs.kv
        ).tokens_per_second
        speeds.append("-" if budget < needs.smallest else f"{told.low:.2g}-{told.high:.2g}")
    assert shape.download is not None
    sizes = (
        shape.download.total_bytes,
        shape.packed_bytes,
        needs.smallest,
        shape.dense.every_token + shape.token_expert_bytes,
    )
    return f"| {' | '.join([preset.title, *map(format_size, sizes), *speeds])} |"


def test_the_table_of_models() -> None:
    text = README.read_text()
    rows = [row(preset) for preset in PRESETS.values()]
    assert "\n".join(rows) in text, "the README's rows should be:\n" + "\n".join(rows)
    shares = f"{MEMORY_SHARES[0]:.0%}".rstrip("%"), f"{MEMORY_SHARES[1]:.0%}".rstrip("%")
    assert " to ".join(shares) in " ".join(text.split())
