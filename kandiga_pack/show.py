"""What people see of a result."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from kandiga_pack.convert import ConvertSummary, format_bytes
from kandiga_pack.export import ExportSummary
from kandiga_pack.output import two_columns
from kandiga_pack.publish import PublishSummary
from kandiga_pack.repair import RepairSummary
from kandiga_pack.verify import VerifyReport

# Of a list that may have thousands of entries.
_MAX_LINES = 20


def show_convert(summary: ConvertSummary, console: Console) -> None:
    """Print what a conversion did."""
    _show_packed(summary, console, f"packed {summary.source}", [("read", summary.bytes_read)])


def show_synth(summary: ConvertSummary, console: Console) -> None:
    """Print what was made up."""
    _show_packed(summary, console, f"made {summary.source}", [])


def _show_packed(
    summary: ConvertSummary, console: Console, title: str, read: list[tuple[str, int]]
) -> None:
    rate = f"{format_bytes(summary.bytes_per_second)}/s"
    console.print(
        two_columns(
            title,
            [
                ("into", str(summary.path)),
                ("architecture", summary.architecture),
                ("experts", f"{summary.num_experts} in {summary.num_layers} layers"),
                ("dense tensors", str(summary.num_dense_tensors)),
                *((label, format_bytes(count)) for label, count in read),
                ("written", f"{format_bytes(summary.bytes_written)}, {_shards(summary)}"),
                ("time", f"{summary.seconds:.1f} s, {rate}"),
            ],
        )
    )
    for note in summary.notes:
        console.print(f"note: {note}")


def _shards(summary: ConvertSummary) -> str:
    return "1 shard" if summary.num_shards == 1 else f"{summary.num_shards} shards"


def show_verify(report: VerifyReport, console: Console) -> None:
    """Print one line for a container that is right."""
    checked = f"{report.num_shards} shard(s), {report.num_experts} experts"
    if report.level == "full":
        checked += f", every byte of {format_bytes(report.bytes_checked)}"
    else:
        checked += ", index only"
    console.print(f"{report.path}: all right ({checked})")
    if report.compared_with is not None:
        console.print(
            f"equal to {report.compared_with}: {report.tensors_compared} tensors, bit for bit"
        )


def show_export(summary: ExportSummary, console: Console) -> None:
    """Print what an export did."""
    console.print(
        two_columns(
            f"exported to {summary.path}",
            [
                ("tensors", f"{summary.num_tensors} in {summary.num_files} file(s)"),
                ("identical files", f"{summary.identical_files} of {summary.num_files}"),
                ("written", format_bytes(summary.bytes_written)),
                ("time", f"{summary.seconds:.1f} s"),
            ],
        )
    )


def show_repair(summary: RepairSummary, console: Console) -> None:
    """Print what was damaged and what was done."""
    if not summary.is_damaged:
        console.print(f"{summary.path}: all right, nothing to repair")
        return
    for block in summary.blocks[:_MAX_LINES]:
        console.print(f"{block['file']}: layer {block['layer']} expert {block['expert']}")
    if len(summary.blocks) > _MAX_LINES:
        console.print(f"... and {len(summary.blocks) - _MAX_LINES} experts more")
    rows = [
        ("experts", str(len(summary.blocks) or "")),
        ("dense weights of", ", ".join(summary.dense)),
        ("index of", ", ".join(summary.heads)),
        ("length of", ", ".join(summary.resized)),
        ("files", ", ".join(summary.files)),
    ]
    if not summary.dry_run:
        requests = f" in {summary.requests} requests" if summary.requests else ""
        rows += [
            ("from", str(summary.source)),
            ("read from it", format_bytes(summary.bytes_fetched) + requests),
            ("written", format_bytes(summary.bytes_written)),
            ("time", f"{summary.seconds:.1f} s; verified"),
        ]
    title = "damaged" if summary.dry_run else "repaired"
    console.print(two_columns(f"{title}: {summary.path}", [row for row in rows if row[1]]))


def show_publish(summary: PublishSummary, console: Console) -> None:
    """Print what was published, or in a dry run what would be, with the card."""
    if summary.commit is None:
        console.print(summary.card, markup=False)
    what = "would be published" if summary.commit is None else "published"
    rows = [
        ("files", f"{len(summary.files)}, {format_bytes(summary.total_bytes)}"),
        ("commit", summary.commit or "none: dry run"),
        ("page", summary.url or ""),
        ("run it with", f'kandiga-run run {summary.repository} "..."'),
    ]
    if summary.removed:
        rows.append(("removed there", ", ".join(summary.removed)))
    if summary.card_was_kept:
        rows.append(("card", "kept as it is there"))
    console.print(two_columns(f"{what}: {summary.repository}", [row for row in rows if row[1]]))
    for note in summary.notes:
        console.print(f"note: {note}")


def show_inspect(facts: dict[str, Any], console: Console) -> None:
    """Print the facts about a container."""
    experts = "/".join(str(count) for count in facts["experts_per_layer"])
    per_token = facts["bytes_per_token"]
    source = facts["source"]
    origin = source.get("repository") or ", ".join(source["files"])
    if source.get("revision"):
        origin += f" @ {source['revision'][:12]}"
    rows = [
        ("architecture", facts["architecture"]),
        ("hidden size", str(facts["hidden_size"])),
        ("activation", facts["activation"]),
        (
            "experts",
            f"{experts} in each of {len(facts['expert_layers'])} layers, {facts['top_k']} a token",
        ),
        ("expert weights", format_bytes(facts["experts_bytes"])),
        (
            "dense weights",
            f"{format_bytes(facts['dense_bytes'])} in {facts['dense_tensors']} tensors",
        ),
        ("experts a token", format_bytes(per_token["experts"])),
        ("quantization", _quantization(facts["quantization"])),
        ("made from", origin),
        ("set root", facts["set_root"]),
    ]
    if (published := facts.get("published")) is not None:
        fetched = f"{format_bytes(published['bytes'])} in {published['requests']} requests"
        rows += [("commit", str(published["commit"])), ("fetched", f"{fetched}; no weights")]
    console.print(two_columns(facts["path"], rows))
    for layout in facts["layouts"]:
        console.print(_layout_table(layout))
    shards = Table(title="shards", title_justify="left", box=None, padding=(0, 2))
    shards.add_column("file")
    shards.add_column("size", justify="right")
    for shard in facts["shards"]:
        shards.add_row(shard["name"], format_bytes(shard["size"]))
    console.print(shards)


def _quantization(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "none"
    overrides = sum(isinstance(value, dict) for value in entry.values())
    text = f"{entry.get('mode', 'affine')} {entry.get('bits')}-bit, group {entry.get('group_size')}"
    return f"{text}, {overrides} overrides" if overrides else text


def _layout_table(layout: dict[str, Any]) -> Table:
    table = Table(
        title=f"an expert of layers {_layers(layout['layers'])}: "
        f"{format_bytes(layout['block_bytes'])} ({layout['block_bytes']} bytes)",
        title_justify="left",
        box=None,
        padding=(0, 2),
    )
    for column in ("part", "dtype", "shape", "coding"):
        table.add_column(column)
    table.add_column("bytes", justify="right")
    for part in layout["parts"]:
        coding = (
            f"{part['mode']} {part['bits']}-bit, group {part['group_size']}"
            if part["mode"] != "none"
            else ""
        )
        table.add_row(
            f"{part['projection']}.{part['role']}",
            part["dtype"],
            " x ".join(str(size) for size in part["shape"]),
            coding,
            str(part["length_bytes"]),
        )
    return table


def _layers(layers: list[int]) -> str:
    if len(layers) > 1 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ", ".join(str(layer) for layer in layers)
