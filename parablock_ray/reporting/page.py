"""The report as one HTML page that needs nothing else: no network, no script, no file beside it."""

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from parablock_ray import __version__
from parablock_ray.config import Config
from parablock_ray.reporting.figures import final_losses, looks, loss_curves, times_to_loss
from parablock_ray.reporting.progress import DESCRIBED, SMOOTHED_ROUNDS, TOLERANCE, measures_in
from parablock_ray.reporting.runs import Gathered, Group, compared_with, versions_of, warnings
from parablock_ray.reporting.tables import along_table, main_table, run_table, settings_table


@dataclass(frozen=True)
class _OfGroup:
    """A picture of one run that stands for its group."""

    label: str
    picture: Markup


def render(gathered: Gathered, control: Group, title: str) -> str:
    """The page. `control`: the group that the others are compared with."""
    groups = gathered.groups
    controls, measures = compared_with(groups, control), measures_in(groups)
    mode = ", ".join(dict.fromkeys(group.config.network.mode for group in groups))
    environment = Environment(
        loader=PackageLoader("parablock_ray", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        title=title,
        facts=_facts(groups),
        warnings=warnings(gathered),
        control=control.label,
        looks=looks(groups),
        main_table=main_table(groups, controls, measures[0]),
        along_table=along_table(groups, controls, measures[0]),
        curves=[plot for measure in measures for plot in loss_curves(groups, measure, mode)],
        ends=[final_losses(groups), times_to_loss(groups, controls, measures[0], mode)],
        target=DESCRIBED[measures[0]],
        smoothed_rounds=SMOOTHED_ROUNDS,
        tolerance=f"{TOLERANCE:.0%}",
        timelines=list(_timelines(groups)),
        ranks=list(_ranks(groups)),
        splits=list(_splits(groups)),
        settings=settings_table(groups),
        runs=run_table(groups),
        versions=versions_of(groups),
        reconstructed=any(group.config.method.name == "parablock" for group in groups),
        made_by=f"parablock-ray {__version__}",
    )


def _facts(groups: Sequence[Group]) -> Mapping[str, str]:
    """What was run, in short; where groups differ, all that there is."""

    def said(values: Iterator[object]) -> str:
        return ", ".join(dict.fromkeys(map(str, values)))

    configs = [group.config for group in groups]
    return {
        "runs": f"{sum(len(group.runs) for group in groups)} in {len(groups)} group(s)",
        "model": said(config.model.name for config in configs),
        "data": said(" ".join((config.data.source, *config.data.tasks)) for config in configs),
        "split": said(config.data.split.name for config in configs),
        "clients": said(config.clients.num for config in configs),
        "rounds": said(config.method.rounds for config in configs),
        "seconds are": f"network.mode {said(config.network.mode for config in configs)}",
    }


def _left_by_runs(groups: Sequence[Group], name: str, alt: str, shared: Callable[[Config], str]) -> Iterator[_OfGroup]:
    """A picture that each group's first run left in its folder, once for groups whose pictures are the same: `shared`
    says of a config what the picture depends on.

    As images: in the page itself the names in one would meet those in another.
    """
    labels: dict[str, list[str]] = {}
    files: dict[str, Path] = {}
    for group in groups:
        file, key = group.runs[0].folder / name, shared(group.config)
        if file.exists():
            labels.setdefault(key, []).append(group.label)
            files.setdefault(key, file)
    for key, file in files.items():
        source = f"data:image/svg+xml;base64,{b64encode(file.read_bytes()).decode()}"
        label = "all groups" if 1 < len(labels[key]) == len(groups) else ", ".join(labels[key])
        yield _OfGroup(label, Markup('<img alt="{}" src="{}">').format(f"{alt}: {label}", source))


def _timelines(groups: Sequence[Group]) -> Iterator[_OfGroup]:
    return _left_by_runs(groups, "timeline.svg", "what each client did when", Config.model_dump_json)


def _ranks(groups: Sequence[Group]) -> Iterator[_OfGroup]:
    return _left_by_runs(groups, "ranks.svg", "ranks and singular values that were kept", Config.model_dump_json)


def _splits(groups: Sequence[Group]) -> Iterator[_OfGroup]:
    def shared(config: Config) -> str:
        return config.model_dump_json(include={"data": True, "clients": {"num"}, "seed": True})

    return _left_by_runs(groups, "clients.svg", "which client holds how many examples of which label", shared)
