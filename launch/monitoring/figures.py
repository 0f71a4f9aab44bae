"""A run that goes on, as its Ray cluster tells it: actors from the dashboard's API, figures from the metrics ports.

    python launch/monitoring/figures.py ADDRESS TOKEN_FILE TIMEOUT_S

Needs nothing but Python. Waits for a run that has told its loss; exit code 1 where none did in time.
"""

import json
import re
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

POLL_S = 2.0
HTTP_TIMEOUT_S = 10.0
SAMPLE = re.compile(r"^(ray_parablock_\w+){(.*)} (\S+)$", re.MULTILINE)


def ask(url: str, token: str | None = None) -> str:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urlopen(Request(url, headers=headers), timeout=HTTP_TIMEOUT_S) as answer:
        return answer.read().decode()


def actors(address: str, token: str) -> list[str]:
    """Names of those that are alive, but for Ray's own."""
    found = json.loads(ask(f"{address}/api/v0/actors", token))["data"]["result"]["result"]
    alive = [actor for actor in found if actor["state"] == "ALIVE" and actor["class_name"].endswith("Actor")]
    return sorted(actor["name"] for actor in alive if actor["name"] and not actor["name"].startswith("_"))


def figures(address: str, token: str) -> dict[str, float]:
    """Metric → value, of every run that Ray's nodes tell of. The metrics ports ask for no token."""
    nodes = [node for group in json.loads(ask(f"{address}/api/prometheus/sd", token)) for node in group["targets"]]
    told = (SAMPLE.findall(ask(f"http://{node}/metrics")) for node in nodes)
    return {name: float(value) for node in told for name, _, value in node}


def main(address: str, token_file: str, timeout_s: str) -> int:
    token, end_s = Path(token_file).read_text("utf-8").strip(), time.monotonic() + float(timeout_s)
    while time.monotonic() < end_s:
        named, told = actors(address, token), figures(address, token)
        if {"server", "worker-0"} <= set(named) and "ray_parablock_loss" in told:
            print(f"actors: {', '.join(named)}")
            print("\n".join(f"{name} {value:g}" for name, value in sorted(told.items())))
            return 0
        time.sleep(POLL_S)
    print(f"no run of {address} told its loss within {timeout_s} s; actors: {named}, figures: {told}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
