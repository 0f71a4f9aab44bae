"""A run as pictures: a trace for Perfetto (ui.perfetto.dev) or chrome://tracing, and a Gantt chart in SVG."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from parablock_ray.tracking.events import Committed, Event, Phase, Span

_PHASES: tuple[Phase, ...] = ("wait", "catch_up", "compute", "upload", "download")
_SERVER = 0  # its process in the trace; client i is process i + 1
_LANES_PER_PHASE = 100  # more transfers of one client than that are never under way at once
_MICROSECONDS = 1e6

_COLOURS: dict[Phase, str] = {
    "wait": "#e4e4e4",
    "catch_up": "#b07aa1",
    "compute": "#4e79a7",
    "upload": "#f28e2b",
    "download": "#59a14f",
}
_MAX_ROUNDS, _MAX_CLIENTS = 12, 16  # of the chart; more would be too small to read
_WIDTH, _LEFT, _LANE, _GAP = 1200, 90, 12, 8  # pixels


def chrome_trace(events: Iterable[Event], about: Mapping[str, Any], with_server: bool) -> dict[str, Any]:
    """The events in Chrome's trace format. `about`: what else to say, under `otherData`.

    A client is a process with a row for each phase, and one more where two transfers of a phase overlap (the one
    still on its way, the next on the line): rows must not hold overlapping spans. The server has a row of commits and,
    `with_server`, one of its arithmetic: as long as it took for the round in all, drawn to end at the commit and to
    begin no sooner than at the last one. Times of the recurrence have no room for that.
    """
    events = list(events)
    spans = sorted((event for event in events if isinstance(event, Span)), key=lambda span: span.start_s)
    rows = [_name("process_name", _SERVER, 0, "server"), _name("thread_name", _SERVER, 0, "commits")]
    rows += [_name("thread_name", _SERVER, 1, "aggregation")] if with_server else []
    last_s = 0.0
    for commit in sorted((event for event in events if isinstance(event, Committed)), key=lambda each: each.time_s):
        rows += [_commit_row(commit), *([_aggregation_row(commit, last_s)] if with_server else [])]
        last_s = commit.time_s
    for client, worker in sorted({(span.client, span.worker) for span in spans}):
        rows.append(_name("process_name", client + 1, 0, f"client {client} (worker {worker})"))
    free_s: defaultdict[tuple[int, Phase], list[float]] = defaultdict(list)  # by lane
    for span in spans:
        if span.end_s > span.start_s:
            lanes = free_s[span.client, span.phase]
            lane = next((lane for lane, free in enumerate(lanes) if free <= span.start_s), len(lanes))
            row = _PHASES.index(span.phase) * _LANES_PER_PHASE + lane
            if lane == len(lanes):
                lanes.append(0.0)
                rows.append(_name("thread_name", span.client + 1, row, span.phase))
                rows.append(_meta("thread_sort_index", span.client + 1, row, {"sort_index": row}))
            lanes[lane] = span.end_s
            rows.append(_span_row(span, row))
    return {"traceEvents": rows, "displayTimeUnit": "ms", "otherData": dict(about)}


def _span_row(span: Span, row: int) -> dict[str, Any]:
    told = {"round": span.round, "block": span.block, "bytes": span.num_bytes or None, "loss": span.loss}
    return {
        "name": f"{span.phase} {span.round}",
        "cat": span.phase,
        "ph": "X",
        "pid": span.client + 1,
        "tid": row,
        "ts": span.start_s * _MICROSECONDS,
        "dur": (span.end_s - span.start_s) * _MICROSECONDS,
        "args": {key: value for key, value in told.items() if value is not None},
    }


def _commit_row(commit: Committed) -> dict[str, Any]:
    return {
        "name": f"commit {commit.round}",
        "cat": "commit",
        "ph": "i",
        "s": "p",
        "pid": _SERVER,
        "tid": 0,
        "ts": commit.time_s * _MICROSECONDS,
        "args": {"round": commit.round, "block": commit.block, "participants": len(commit.participants)},
    }


def _aggregation_row(commit: Committed, last_s: float) -> dict[str, Any]:
    start_s = max(last_s, commit.time_s - commit.server_s)
    return {
        "name": f"aggregate {commit.round}",
        "cat": "aggregation",
        "ph": "X",
        "pid": _SERVER,
        "tid": 1,
        "ts": start_s * _MICROSECONDS,
        "dur": (commit.time_s - start_s) * _MICROSECONDS,
        "args": {"round": commit.round, "block": commit.block, "server_s": commit.server_s},
    }


def _name(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return _meta(what, pid, tid, {"name": name})


def _meta(what: str, pid: int, tid: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": args}


def gantt_svg(events: Iterable[Event], title: str) -> str:
    """The first rounds as a chart: for each client a lane of computing, one of uploads, one of downloads."""
    first = [event for event in events if event.round < _MAX_ROUNDS]
    spans = [event for event in first if isinstance(event, Span) and event.end_s > event.start_s]
    commits = [event for event in first if isinstance(event, Committed)]
    clients = sorted({span.client for span in spans})[:_MAX_CLIENTS]
    spans = [span for span in spans if span.client in clients]
    end_s = max([span.end_s for span in spans] + [commit.time_s for commit in commits], default=0.0) or 1.0
    scale = (_WIDTH - _LEFT - 20) / end_s
    client_height = 3 * _LANE + _GAP
    top, height = 60, 60 + len(clients) * client_height
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height + 30}" '
        f'viewBox="0 0 {_WIDTH} {height + 30}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
        *_legend(),
    ]
    for number, client in enumerate(clients):
        y = top + number * client_height
        parts.append(f'<text x="10" y="{y + 2 * _LANE}">client {client}</text>')
        parts += [_bar(span, y, scale) for span in spans if span.client == client]
    for commit in commits:
        x = _LEFT + commit.time_s * scale
        parts.append(
            f'<line x1="{x:.2f}" x2="{x:.2f}" y1="{top - 6}" y2="{height}" stroke="#555" stroke-dasharray="2 3">'
            f"<title>round {commit.round} committed at {commit.time_s:.4g} s</title></line>"
        )
    parts.append(f'<text x="{_LEFT}" y="{height + 18}">0 s</text>')
    parts.append(f'<text x="{_WIDTH - 20}" y="{height + 18}" text-anchor="end">{end_s:.4g} s</text>')
    return "\n".join([*parts, "</svg>\n"])


def _legend() -> Sequence[str]:
    return [
        f'<rect x="{_LEFT + 110 * i}" y="32" width="12" height="12" fill="{_COLOURS[phase]}"/>'
        f'<text x="{_LEFT + 110 * i + 18}" y="42">{phase}</text>'
        for i, phase in enumerate(_PHASES)
    ] + [f'<text x="{_LEFT + 110 * len(_PHASES)}" y="42">dashed: commits</text>']


def _bar(span: Span, y: int, scale: float) -> str:
    lane = {"upload": 1, "download": 2, "catch_up": 2}.get(span.phase, 0)
    x, width = _LEFT + span.start_s * scale, (span.end_s - span.start_s) * scale
    return (
        f'<rect x="{x:.2f}" y="{y + lane * _LANE}" width="{width:.2f}" height="{_LANE - 1}" '
        f'fill="{_COLOURS[span.phase]}" fill-opacity="{0.65 if span.round % 2 else 1}">'
        f"<title>{span.phase}, round {span.round}: {span.start_s:.4g} to {span.end_s:.4g} s</title></rect>"
    )
