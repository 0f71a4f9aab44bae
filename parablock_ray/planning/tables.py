"""A plan for people: tables, and sentences below them."""

from collections.abc import Iterator, Sequence
from textwrap import shorten

from rich.filesize import decimal
from rich.table import Table

from parablock_ray.planning.memory import EXCLUDED
from parablock_ray.planning.plan import Case, Plan


def parts(plan: Plan) -> Iterator[Table | str]:
    """What to print, in order."""
    yield f"{plan.name}: {plan.num_rounds} rounds, network {plan.network_mode} {plan.network}".rstrip()
    yield _who(plan)
    yield f"\nblocks: seconds of a step {plan.step_s_from}; visits and transfers of the median client"
    yield _blocks(plan)
    yield f"\nseconds: * as configured, speed over {plan.cases[0].method} on the same network"
    yield _cases(plan)
    left_out = (f"left out: {_name(case)}: {case.left_out}" for case in plan.cases if case.left_out)
    yield from dict.fromkeys(left_out)  # once, whatever the staleness
    at_most = "; downloads are the most that florist may keep" if plan.configured.method == "florist" else ""
    yield f"\nbytes, as configured{at_most}"
    yield _traffic(plan)
    yield f"\nmemory of a process, estimated; excluded are {EXCLUDED}"
    yield _memory(plan)
    if plan.peak_rss_bytes:
        peaks = ", ".join(f"{process} {decimal(peak)}" for process, peak in plan.peak_rss_bytes.items())
        yield f"peak of the processes while steps were measured: {peaks}"
    yield from (f"\nadvice: {sentence}" for sentence in plan.advice)


def _who(plan: Plan) -> str:
    who = plan.who
    hosted = "; ".join(f"worker {w}: {', '.join(map(str, clients))}" for w, clients in enumerate(who.clients_of))
    return (
        f"{who.num_clients} client(s) on {who.num_workers} worker(s), {who.per_round} a round "
        f"({shorten(hosted, 80, placeholder=' …')})"
    )


def _table(headers: Sequence[str], num_text: int) -> Table:
    """The first `num_text` columns hold text, the others figures."""
    table = Table(box=None, pad_edge=False)
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index < num_text else "right", no_wrap=True)
    return table


def _blocks(plan: Plan) -> Table:
    headers = ("block", "parameters", "on the wire", "step s", "visit s", "upload s", "download s")
    table = _table(headers, num_text=1)
    for block in plan.blocks:
        seconds = (block.step_s, block.visit_s, block.upload_s, block.download_s)
        cells = (f"{block.index}", f"{block.num_params:,}", decimal(block.wire_bytes), *(f"{s:.3f}" for s in seconds))
        table.add_row(*cells)
    return table


def _cases(plan: Plan) -> Table:
    headers = ("", "method", "staleness", "exchange", "pipeline", "a round s", "total s", "speed")
    table = _table(headers, num_text=5)
    for case in plan.cases:
        if case.total_s is None or case.round_s is None:
            continue
        mark, speed = "*" if case.is_configured else "", f"{case.speed:.2f}x" if case.speed else ""
        cells = (mark, case.method, f"{case.staleness}", case.exchange, case.pipeline)
        table.add_row(*cells, f"{case.round_s:.3f}", f"{case.total_s:.3f}", speed)
    return table


def _name(case: Case) -> str:
    return f"{case.method} {case.exchange} {case.pipeline}"


def _traffic(plan: Plan) -> Table:
    table = _table(("", "total", "a round", "a client, mean", "a client, most"), num_text=1)
    for direction, each in plan.traffic.items():
        figures = (each.total_bytes, each.round_bytes, each.client_mean_bytes, each.client_max_bytes)
        table.add_row(direction.replace("_", "-"), *(decimal(round(figure)) for figure in figures))
    return table


def _memory(plan: Plan) -> Table:
    table = _table(("", "", "bytes"), num_text=2)
    for each in plan.memory:
        several = f" (each of {each.num_processes})" if each.num_processes > 1 else ""
        table.add_row(f"{each.process}{several}", "", decimal(each.total_bytes))
        for part, num_bytes in each.parts_bytes.items():
            table.add_row("", part, decimal(num_bytes))
    return table
