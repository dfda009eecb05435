"""Checks deploy/grafana and deploy/prometheus: each metric they use is in docs/metrics.md; the dashboard is sound and its
expressions parse (Prometheus' own parser reads them, as rules)."""

import json
import re
import subprocess
import sys
import tempfile

import yaml

METRIC = re.compile(r"\b(?:sheave|kubeproxy|process)_[a-z0-9_]+\b")
# What Grafana puts in.
VARIABLES = {"$__rate_interval": "5m", "$node": ".*"}


def fail(message):
    sys.exit(message)


def documented():
    with open("docs/metrics.md", encoding="utf-8") as file:
        names = set(METRIC.findall(file.read()))
    return names | {f"{name}_{part}" for name in names for part in ("bucket", "sum", "count")}


def dashboard():
    """Its expressions, by the panel's title."""
    with open("deploy/grafana/sheave.json", encoding="utf-8") as file:
        board = json.load(file)
    panels = board["panels"]
    if len({panel["id"] for panel in panels}) != len(panels):
        fail("two panels have the same id")
    taken = {}
    for panel in panels:
        place = panel["gridPos"]
        for cell in ((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])):
            if cell[0] >= 24 or taken.setdefault(cell, panel["id"]) != panel["id"]:
                fail(f"panel {panel['title']!r} lies outside or on another one")
    expressions = [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", [])]
    expressions += [(v["name"], v["definition"]) for v in board["templating"]["list"] if "definition" in v]
    return expressions


def alerts():
    with open("deploy/prometheus/rules.yaml", encoding="utf-8") as file:
        return [(rule["alert"], rule["expr"]) for group in yaml.safe_load(file)["groups"] for rule in group["rules"]]


def parse(expressions):
    def plain(expression):
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        return expression

    rules = [{"record": f"panel:{i}", "expr": plain(e)} for i, (_, e) in enumerate(expressions) if not e.startswith("label_values(")]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)
        file.flush()
        subprocess.run(["promtool", "check", "rules", file.name], check=True, stdout=subprocess.DEVNULL)


def main():
    shown = dashboard()
    parse(shown)
    known = documented()
    unknown = [(where, name) for where, e in shown + alerts() for name in METRIC.findall(e) if name not in known]
    if unknown:
        fail("\n".join(f"{where}: docs/metrics.md has no {name}" for where, name in unknown))


main()
