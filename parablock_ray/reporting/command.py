"""`parablock report`: the page, and its tables as files."""

from collections.abc import Sequence
from pathlib import Path

from parablock_ray.errors import UserError
from parablock_ray.reporting.page import render
from parablock_ray.reporting.progress import measures_in
from parablock_ray.reporting.runs import Gathered, compared_with, control_of, gather, warnings
from parablock_ray.reporting.tables import along_table, main_table, markdown, write_csv


def page_of_run(folder: Path) -> str:
    """The page of this one run, as HTML. Raises UserError as `make_report` does."""
    gathered = gather([folder])
    return render(gathered, control_of(gathered.groups, None), folder.resolve().name)


def make_report(
    folders: Sequence[Path], out: Path, control: str | None, csv_folder: Path | None, markdown_file: Path | None
) -> Gathered:
    """Write what was asked for; returns what it is about. Raises UserError."""
    gathered = gather(folders)
    chosen = control_of(gathered.groups, control)
    title = ", ".join(dict.fromkeys(folder.resolve().name for folder in folders))
    _write(out, "--out", render(gathered, chosen, title))
    controls, measure = compared_with(gathered.groups, chosen), measures_in(gathered.groups)[0]
    if csv_folder is not None:
        write_csv(gathered.groups, controls, measure, csv_folder)
    if markdown_file is not None:
        notes = "".join(f"\n> {warning}\n" for warning in warnings(gathered))
        tables = [made(gathered.groups, controls, measure) for made in (main_table, along_table)]
        _write(markdown_file, "--markdown", "\n".join(map(markdown, tables)) + notes)
    return gathered


def _write(file: Path, option: str, text: str) -> None:
    try:
        file.write_text(text, "utf-8")
    except OSError as error:
        raise UserError(f"{option}: cannot write to {file}: {error.strerror}") from None
