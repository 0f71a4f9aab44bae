"""The trace and the chart say what the events say."""

import json
from collections import defaultdict
from itertools import pairwise
from xml.etree import ElementTree

from parablock_ray.tracking.events import Event, Span, as_row, from_row
from parablock_ray.tracking.trace import chrome_trace, gantt_svg
from tests.tracking.test_rounds import overlapped_run, span

SVG = "{http://www.w3.org/2000/svg}"
LATENT = [span("upload", 3, 0, 8.0, 9.0, 100), span("upload", 4, 0, 8.5, 9.5, 100)]  # one on its way, one on the line


def spans_of(events: list[Event]) -> list[Span]:
    return [event for event in events if isinstance(event, Span)]


def test_spans_and_commits_are_the_events() -> None:
    events = [*overlapped_run(), *LATENT]
    trace = json.loads(json.dumps(chrome_trace(events, {"run": "small"}, with_server=True)))
    assert trace["otherData"] == {"run": "small"}
    bars = [row for row in trace["traceEvents"] if row["ph"] == "X" and row["cat"] != "aggregation"]
    drawn = [(b["cat"], b["args"]["round"], b["pid"] - 1, b["ts"] / 1e6, (b["ts"] + b["dur"]) / 1e6) for b in bars]
    told = [(s.phase, s.round, s.client, s.start_s, s.end_s) for s in spans_of(events)]
    assert sorted(drawn) == sorted(told)  # exact: the times are multiples of a quarter
    commits = {row["args"]["round"]: row["ts"] / 1e6 for row in trace["traceEvents"] if row["ph"] == "i"}
    assert commits == {0: 2.5, 1: 4.5, 2: 6.75}
    aggregations = [row for row in trace["traceEvents"] if row.get("cat") == "aggregation"]
    assert [(row["ts"] + row["dur"]) / 1e6 for row in aggregations] == list(commits.values())
    assert [row["dur"] / 1e6 for row in aggregations] == [row["args"]["server_s"] for row in aggregations] == [0.25] * 3


def test_a_row_holds_no_two_spans_at_once_and_is_named_after_its_phase() -> None:
    rows = chrome_trace([*overlapped_run(), *LATENT], {}, with_server=True)["traceEvents"]
    names = {(row["pid"], row["tid"]): row["args"]["name"] for row in rows if row["name"] == "thread_name"}
    bars = defaultdict(list)
    for row in rows:
        if row["ph"] == "X":
            bars[row["pid"], row["tid"]].append((row["ts"], row["ts"] + row["dur"]))
            assert names[row["pid"], row["tid"]] == row["cat"]
    for spans in bars.values():
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert sum(name == "upload" for (pid, _), name in names.items() if pid == 1) == 2


def test_the_chart_is_svg_with_a_bar_a_span() -> None:
    events = overlapped_run()
    chart = ElementTree.fromstring(gantt_svg(events, "a < b & c"))
    texts = [text.text for text in chart.iter(f"{SVG}text")]
    assert texts[0] == "a < b & c"
    assert {"client 0", "client 1", "0 s", "7.75 s"} <= set(texts)
    titles = [title.text for bar in chart.iter(f"{SVG}rect") for title in bar.iter(f"{SVG}title")]
    assert len(titles) == len(spans_of(events))
    assert "compute, round 1: 2 to 4 s" in titles
    assert len(list(chart.iter(f"{SVG}line"))) == 3


def test_the_chart_stops_where_it_gets_too_small() -> None:
    events = [span("compute", round, client, round, round + 1) for round in range(50) for client in range(50)]
    titles = list(ElementTree.fromstring(gantt_svg(events, "long")).iter(f"{SVG}title"))
    assert len(titles) == 12 * 16
    ElementTree.fromstring(gantt_svg([], "nothing"))


def test_rows_of_the_events_file_read_back() -> None:
    events = overlapped_run()
    assert [from_row(json.loads(json.dumps(as_row(event)))) for event in events] == events
