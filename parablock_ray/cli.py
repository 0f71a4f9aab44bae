"""The command `parablock`. Exit codes: 0 done, 1 failed while running, 2 the user's mistake, 130 interrupted."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from parablock_ray import __version__
from parablock_ray.accounting import privacy_line
from parablock_ray.config import Config, load_config
from parablock_ray.errors import RunFailed, Stopped, UserError
from parablock_ray.importing import fast_imports
from parablock_ray.starting import own_cluster_of

app = typer.Typer(
    help="Federated fine-tuning of large language models whose communication hides behind the computation.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[str, typer.Argument(help="A YAML file, like configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the file, like method.rounds=20 seed=1."),
]


@app.callback(invoke_without_command=True)
def parablock(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"parablock-ray {__version__}")
        raise typer.Exit


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="Name of the run, in place of the file's.")] = None,
    out: Annotated[str | None, typer.Option(help="Run folder, in place of the file's; must hold no run.")] = None,
) -> None:
    """Fine-tune as CONFIG says and leave metrics, summary and model in the run folder."""
    chosen = {"name": name, "out": out}
    # Quoted as JSON, so that YAML takes --name 7 for text.
    options = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in chosen.items() if value is not None]
    with _exit_codes():
        checked = load_config(config, (overrides or []) + options)
        with own_cluster_of(checked):  # takes seconds: not for a mistake in the config
            with fast_imports():
                from parablock_ray.driver import run as run_experiment

            with _stopping(Path(checked.out)):
                run_experiment(checked)
        typer.echo(f"run folder: {checked.out}")


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run that was interrupted.")],
    overrides: Overrides = None,
) -> None:
    """Go on with a run from its last checkpoint; it ends as it would have without the interruption."""
    with _exit_codes():
        with fast_imports():
            from parablock_ray.resume import resume as resume_run

        with _stopping(folder):
            is_to_do = resume_run(folder, overrides or [])
        if is_to_do:
            typer.echo(f"run folder: {folder}")
        else:
            typer.echo(f"{folder}: this run is finished, there is nothing to resume")


@app.command()
def validate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check CONFIG and say what it would run, without loading a model."""
    with _exit_codes():
        from parablock_ray.named_files import check_files
        from parablock_ray.secure_terms import check_secure_aggregation

        checked = load_config(config, overrides or [])
        check_files(checked)
        check_secure_aggregation(checked, largest=1)
        typer.echo(f"OK: {_described(checked)}")
        if (line := privacy_line(checked)) is not None:
            typer.echo(line)


@app.command()
def data(
    config: ConfigPath,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="An SVG file for the picture of the split.")] = None,
) -> None:
    """Read, tokenise and split the data of CONFIG, and show which client holds what, without training."""
    from rich.console import Console

    with _exit_codes():
        checked = load_config(config, overrides or [])
        from parablock_ray.driver import prepare  # takes seconds: not for a mistake in the config
        from parablock_ray.tracking.client_split import split_figure, split_line, split_table
        from parablock_ray.tracking.compare import MIN_WIDTH
        from parablock_ray.training.batches import padding_line

        prepared = prepare(checked)
        report = prepared.data.report
        console = Console(markup=False)
        console.width = max(console.width, MIN_WIDTH)
        split_said = split_line(checked.data.split.name, report.labels)
        for line in (report.line(), split_said, padding_line(prepared.data, prepared.population, checked)):
            console.print(line, highlight=False, soft_wrap=True)
        console.print(split_table(report.labels))
        if out is not None:
            with _writing("--out", out):
                split_figure(report.labels).savefig(out, format="svg")
            typer.echo(f"picture: {out}")


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    compute_s: Annotated[
        str | None,
        typer.Option(metavar="SECONDS", help="Of a local step: 1.2, or 1.2,1.4,… by block. Else they are measured."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as one JSON object.")] = False,
) -> None:
    """Say before a run what it will take: seconds, bytes, memory, and how it could overlap more."""
    from rich.console import Console

    with _exit_codes():
        checked = load_config(config, overrides or [])
        from parablock_ray.planning.command import make_plan  # takes seconds: not for a mistake in the config
        from parablock_ray.planning.tables import parts
        from parablock_ray.tracking.compare import MIN_WIDTH

        made = make_plan(checked, compute_s)
        if as_json:
            typer.echo(json.dumps(made.as_json()))
            return
        console = Console(markup=False)
        console.width = max(console.width, MIN_WIDTH)
        for part in parts(made):
            console.print(part, highlight=False, soft_wrap=isinstance(part, str))
        if (line := privacy_line(checked)) is not None:
            typer.echo(line)


@app.command()
def compare(folders: Annotated[list[Path], typer.Argument(metavar="RUN_DIR", help="Folders of runs.")]) -> None:
    """Put finished runs side by side; speed-ups are over the first."""
    from rich.console import Console

    from parablock_ray.tracking.compare import MIN_WIDTH, comparison_table, differences, lora_table, read_run, setting

    with _exit_codes():
        runs = [read_run(folder) for folder in folders]
        console = Console(markup=False)
        console.width = max(console.width, MIN_WIDTH)  # without a terminal it is 80, which would cut columns
        console.print(setting(runs[0]), highlight=False, soft_wrap=True)
        console.print(comparison_table(runs))
        measures = lora_table(runs)
        if measures:
            console.print()
            console.print(measures)
        different = differences([run.config for run in runs])
        if different:
            typer.echo(f"warning: not only the method differs between these runs: {', '.join(different)}", err=True)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A YAML file with a config, a grid of changes and seeds.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the runs, in place of the file's.")] = None,
    parallel: Annotated[int, typer.Option(min=1, help="So many runs at a time.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and what is done, and run none.")] = False,
) -> None:
    """Run every config of FILE that is not done yet, each in a process of its own, for a report on all of them."""
    from rich.console import Console

    from parablock_ray.sweeping.command import run_sweep, state_table
    from parablock_ray.sweeping.expand import load_sweep
    from parablock_ray.sweeping.state import states

    with _exit_codes():
        console = Console(highlight=False, soft_wrap=True, markup=False)
        if dry_run:
            planned = load_sweep(file, out)
            console.print(state_table(planned, states(planned)))
            return
        done = run_sweep(file, out, parallel, console)
        typer.echo(f"all done: parablock report {done.folder} --out {done.folder / 'report.html'}")


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN_DIR", help="Folders of runs, or of sweeps.")],
    out: Annotated[Path, typer.Option(help="The HTML file.")],
    control: Annotated[str | None, typer.Option(help="What to compare with, else the first group of runs.")] = None,
    csv: Annotated[Path | None, typer.Option(help="A folder for the tables as CSV.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="A file for the main table as Markdown.")] = None,
) -> None:
    """Write one HTML page that compares finished runs: curves, tables over seeds, timelines, settings."""
    with _exit_codes():
        from parablock_ray.reporting.command import make_report
        from parablock_ray.reporting.runs import warnings

        told = make_report(folders, out, control, csv, markdown)
        for warning in warnings(told):
            typer.echo(f"warning: {warning}", err=True)
        num_runs = sum(len(group.runs) for group in told.groups)
        typer.echo(f"report: {out} ({num_runs} run(s) in {len(told.groups)} group(s))")


@app.command()
def submit(
    address: Annotated[str, typer.Option(help="Of the cluster's dashboard, like http://head:8265.")],
    config: Annotated[str | None, typer.Argument(help="As of run. None with --attach or --stop.")] = None,
    overrides: Overrides = None,
    token_path: Annotated[Path | None, typer.Option(help="File of its token; else Ray's own variables say.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show the job's log, and exit as the job does.")] = False,
    fetch: Annotated[Path | None, typer.Option(help="New folder for the run folder, once the job has ended.")] = None,
    attach: Annotated[str | None, typer.Option(metavar="ID", help="Come back to this job: wait for its end.")] = None,
    stop: Annotated[str | None, typer.Option(metavar="ID", help="End this job.")] = None,
    python: Annotated[str, typer.Option(help="The cluster's Python that has parablock-ray.")] = "python",
    with_package: Annotated[bool, typer.Option("--with-package", help="Send this parablock_ray along.")] = False,
    env: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the job's environment.")] = None,
) -> None:
    """Run CONFIG as a job of a Ray cluster; docs/cluster.md says how."""
    with _exit_codes():
        if sum(each is not None for each in (config, attach, stop)) != 1:
            raise UserError("submit: give either CONFIG, --attach or --stop")
        checked = None if config is None else load_config(config, overrides or [])
        from parablock_ray.jobs import command as jobs  # takes a second: not for a mistake in the config

        variables = jobs.read_env(env or [])
        if fetch is not None:
            jobs.refuse_used(fetch)
        client = jobs.connect(address, jobs.find_token(token_path))
        if stop is not None:
            typer.echo(f"job {stop}: {jobs.stop_job(client, stop)}")
            return
        if checked is not None:
            job = jobs.submit_job(client, checked, python, variables, with_package)
            typer.echo(f"job {job.id}: {address.rstrip('/')}/#/jobs/{job.id}")
            typer.echo(f"run folder in the cluster: {job.out}")
        else:
            assert attach is not None
            job = jobs.find_job(client, attach, "--attach")
        if follow or fetch is not None or attach is not None:
            raise typer.Exit(jobs.see_through(client, job, follow, fetch))


@app.command()
def reprice(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a finished run.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="File of the new timeline; else RUN_DIR/repriced.json.")] = None,
) -> None:
    """Say what a finished run would have taken under another network, like network.up_mbps=20, without training."""
    from rich.console import Console

    with _exit_codes():
        from parablock_ray.reprice import reprice as reprice_run  # takes seconds
        from parablock_ray.tracking.compare import MIN_WIDTH

        repriced = reprice_run(folder, overrides or [])
        console = Console(markup=False)
        console.width = max(console.width, MIN_WIDTH)
        console.print(repriced.table())
        timeline = out or folder / "repriced.json"
        with _writing("--out", timeline):
            timeline.write_text(json.dumps(repriced.trace) + "\n", encoding="utf-8")
        typer.echo(f"timeline: {timeline} (opens in ui.perfetto.dev)")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a finished run.")],
    to: Annotated[Path, typer.Option(help="Folder of the model: a new or an empty one.")],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    merge_lora: Annotated[
        bool, typer.Option("--merge-lora", help="The whole model, also where a run ends with adapters beside it.")
    ] = False,
) -> None:
    """Write a run's model, or its LoRA adapters alone, as a Hugging Face folder with a model card."""
    with _exit_codes():
        from parablock_ray.export import export as export_run  # takes seconds

        exported = export_run(folder, to, dtype, merge_lora)
        typer.echo(f"{exported.kind}: {to} (weights sha256 {exported.weights_sha256})")


@app.command()
def evaluate(
    model_or_run: Annotated[
        str, typer.Argument(help="A run folder, a Hugging Face folder, or a name as in model.name.")
    ],
    tasks: Annotated[
        str | None, typer.Option(help="With commas between, like held_out,gsm8k=test.jsonl; else the run's own.")
    ] = None,
    num_examples: Annotated[int | None, typer.Option(help="Of each task at most.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Of an answer.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples at once.")] = None,
    template: Annotated[str | None, typer.Option(help="As data.template; a run has its own.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the metrics.")] = None,
    outputs: Annotated[
        Path | None, typer.Option(help="A folder for what the model said, a .jsonl file a task.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as one JSON object.")] = False,
) -> None:
    """Judge a model on instruction following, mathematics and held-out data; docs/evaluation.md has the tasks."""
    from rich.console import Console

    chosen = {
        "tasks": None if tasks is None else tuple(task.strip() for task in tasks.split(",")),
        "num_examples": num_examples,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
    }
    with _exit_codes():
        from parablock_ray.evaluation.command import open_evaluation, write_json  # takes seconds
        from parablock_ray.evaluation.results import result_table, write_outputs
        from parablock_ray.tracking.compare import MIN_WIDTH

        given = {key: value for key, value in chosen.items() if value is not None}
        evaluation = open_evaluation(model_or_run, given, template)
        results = list(evaluation.results())
        found = evaluation.as_json(results)
        if as_json:
            typer.echo(json.dumps(found))
        else:
            console = Console(markup=False)
            console.width = max(console.width, MIN_WIDTH)
            console.print(result_table(results))
        if out is not None:  # after what took long is shown: a file may be refused
            with _writing("--out", out):
                write_json(out, found)
        if outputs is not None:
            with _writing("--outputs", outputs):
                write_outputs(outputs, results)


@app.command("lora-sweep")
def lora_sweep(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run with method.keep_uploads=true.")],
    thresholds: Annotated[str, typer.Option(help="With commas between; each over 0 and at most 1.")] = (
        "0.5,0.7,0.8,0.9,0.95,0.99,1"
    ),
    out: Annotated[Path | None, typer.Option(help="A CSV file, and beside it an SVG; else RUN_DIR/lora_sweep.csv.")] = (
        None
    ),
) -> None:
    """Show held-out loss against compression for FLoRIST's threshold, from the adapters that a run's clients sent."""
    from rich.console import Console

    with _exit_codes():
        from parablock_ray.lora_sweep import numbers, sweep, sweep_table, write_csv, write_svg  # takes seconds
        from parablock_ray.tracking.compare import MIN_WIDTH

        points = sweep(folder, numbers(thresholds))
        console = Console(markup=False)
        console.width = max(console.width, MIN_WIDTH)
        console.print(sweep_table(points))
        table = out or folder / "lora_sweep.csv"
        write_csv(points, table)
        write_svg(points, table.with_suffix(".svg"))
        typer.echo(f"written: {table}, {table.with_suffix('.svg')}")


def _described(config: Config) -> str:
    method, network = config.method, config.network
    link = f", {network.described()}" if network.described() else ""
    return (
        f"{config.name}: {method.name}, {method.rounds} rounds over {method.num_blocks} block(s), "
        f"{config.clients.num} client(s), model {config.model.name}, data {config.data.source}, "
        f"runtime {config.runtime}, network {network.mode}{link} -> {config.out}"
    )


@contextmanager
def _exit_codes() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from None
    except RunFailed as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None


@contextmanager
def _writing(option: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{option}: cannot write to {path}: {error.strerror}") from None


@contextmanager
def _stopping(out: Path) -> Iterator[None]:
    try:
        yield
    except Stopped as stopped:
        typer.echo(f"{stopped}; to go on: parablock resume {out}")
        raise typer.Exit from None


def main() -> None:
    """The console script."""
    app()
