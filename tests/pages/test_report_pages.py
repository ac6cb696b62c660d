"""Pages of reports: each figure is that of the JSON, and no text of a model does harm."""

from __future__ import annotations

import itertools
import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from browser import BROWSER, seen
from full_reports import full_report
from report_pages import check_figures, read_page

from onnxslim.errors import UsageError
from onnxslim.pages.formats import PAGES
from onnxslim.pages.html import data_in, page_html
from onnxslim.pages.markdown import page_markdown
from onnxslim.pages.report_page import page_of, side_by_side
from onnxslim.render.json import plain_json, report_to_json

HARM = '</script><script>alert("x")</script><img src="http://127.0.0.1:9/x"> `|*&'


def full_data() -> Any:
    """A report of a run in which nothing is null, which went through."""
    data: Any = plain_json(report_to_json(full_report()))
    data["passes"][0] |= {"committed": True, "why_not_committed": None}
    for latency in _latencies(data):
        latency["quantiles"] = [latency["median"] * (0.8 + at / 50) for at in range(21)]
    return data


def _latencies(data: Any) -> list[Any]:
    pairs = [data["latency"], *(step["latency"] for step in data["passes"])]
    return [pair[key] for pair in pairs for key in ("before_ms", "after_ms")]


def replaced(data: Any, old: str, new: str) -> Any:
    """The data with another text in place of a text, in keys as well."""
    if isinstance(data, dict):
        return {replaced(key, old, new): replaced(value, old, new) for key, value in data.items()}
    if isinstance(data, list):
        return [replaced(value, old, new) for value in data]
    return new if data == old else data


def html_of(data: Any) -> str:
    return page_html(page_of(data))


FRAME = {"onnxslim": "0", "command": "onnxslim", "versions": {"onnx": "1"}, "processor": "a"}


def kinds() -> dict[str, Any]:
    """A report of each other kind."""
    data = full_data()
    stats, latency, pair = data["before"]["stats"], _latencies(data)[0], data["latency"]
    distance = {"divergence": 0.01, "agreement": 0.9, "sqnr_db": "Infinity"}
    point = {"target": "y", "option": "ratio", "strength": 0.5, "pass": "prune-channels"}
    shares = {"bytes_left": 0.5, "macs_left": None}
    exit_ = {"tensor": "y", "shape": [None, 8], "latency": 0.2, "work": 0.1, "head": "linear"}
    return {
        "bench": {
            "rows": [
                {"model": "a.onnx", "latency_ms": latency, "against_first": None},
                {"model": "b.onnx", "latency_ms": latency, "against_first": pair},
            ]
        },
        "compare": {
            "a": {"path": "a.onnx", "stats": stats},
            "b": {"path": "b.onnx", "stats": stats},
            "drift": data["passes"][0]["drift_original"],
            "latency": pair,
            "compared_on": "4 samples",
            "details": data["details"],
        },
        "sensitivity": {
            "model": "a.onnx",
            "passes": "prune-channels",
            "points": [
                {**point, **shares, "distance": distance},
                {**point, **shares, "strength": 0.7, "distance": distance},
                {**point, **shares, "target": "z", "distance": None},
            ],
        },
        "exits": {
            "model": "a.onnx",
            "exits": [{**exit_, "agreement": 0.99, "leaving": 0.4}],
            "notes": ["a note"],
        },
    }


def test_every_figure_of_a_run_is_that_of_the_json() -> None:
    data = full_data()
    figures = check_figures(html_of(data))
    shown = {figure.at for figure in figures}
    wanted = {
        "/before/stats/file_bytes", "/after/stats/file_bytes", "/latency/ratio",
        "/latency/ratio_low", "/latency/ratio_high", "/after/accuracy", "/passes/0/spec",
        "/passes/0/latency/ratio", "/passes/0/drift_original/y/sqnr_db",
        "/details/layers/0/after/bytes", "/details/layers/0/after/ms", "/details/layers/0/sqnr_db",
        "/details/layers/1/before/sparsity", "/details/samples/0/number",
        "/details/before/energy/parts/0/weights_pj", "/tuning/front/0/file_bytes",
        "/tuning/table/0/error", "/tuning/trial_log/0/loss", "/tuning/measured/bytes",
        "/record/processor", "/input/sha256",
    }  # fmt: skip
    assert wanted <= shown


@pytest.mark.parametrize("kind", sorted(kinds()))
def test_every_figure_of_another_report_is_that_of_the_json(kind: str) -> None:
    data = {**FRAME, "kind": kind, **kinds()[kind]}
    html = html_of(data)
    assert len(check_figures(html)) > 4
    assert "Provenance" in html
    assert page_markdown(page_of(data)).startswith("<!-- onnxslim report -->\n# ")


def test_what_was_not_measured_is_not_shown() -> None:
    data = full_data()
    data |= {"details": None, "tuning": None, "latency": None}
    data["passes"][0] |= {"latency": None, "accuracy": None, "drift_original": None}
    html = html_of(data)
    check_figures(html)
    titles = [f">{title}</h2>" for title in ("Layers", "Front", "Latency", "Energy", "Graph")]
    assert not any(title in html for title in titles)
    assert ">Steps</h2>" in html


def test_a_report_of_an_older_onnxslim_gives_a_page() -> None:
    data = full_data()
    for key in ("details", "tuning", "names", "record"):
        del data[key]
    check_figures(html_of(data))


def test_the_page_holds_the_json_that_it_was_made_from() -> None:
    data = full_data()
    html = html_of(data)
    assert data_in(html) == data
    assert html_of(data_in(html)) == html


def test_names_do_no_harm() -> None:
    data = replaced(replaced(full_data(), "y", HARM), "conv1", HARM)
    html = html_of(data)
    check_figures(html)
    assert data_in(html) == data
    assert html.count("<script") == 2
    assert "<img" not in html
    assert f"{HARM} " not in page_markdown(page_of(data))


def test_a_page_asks_for_nothing() -> None:
    html = html_of(full_data())
    assert "default-src 'none'" in html
    assert not [sign for sign in ("http:", "https:", "@import", "url(//") if sign in html]


def test_runs_stand_side_by_side() -> None:
    data = full_data()
    failed = {"input": {"path": "b.onnx", "sha256": None}, "error": data["error"]}
    several = side_by_side([data, {"onnxslim": "0", "models": [data, failed]}])
    assert len(several["models"]) == 3
    figures = check_figures(html_of(several))
    assert {"/models/0/latency/ratio", "/models/1/after/stats/file_bytes"} <= {
        figure.at for figure in figures
    }
    assert side_by_side([data]) == data


def test_reports_of_all_kinds_stand_side_by_side() -> None:
    others = [{**FRAME, "kind": kind, **members} for kind, members in sorted(kinds().items())]
    figures = check_figures(html_of(side_by_side([full_data(), *others])))
    assert {figure.at.split("/")[2] for figure in figures} == {"0", "1", "2", "3", "4"}


def leaves(data: Any) -> list[tuple[Any, Any]]:
    """Each place in the data: a container and a key."""
    keys = data.keys() if isinstance(data, dict) else range(len(data))
    inner = [data[key] for key in keys if isinstance(data[key], dict | list)]
    return [*((data, key) for key in keys), *(leaf for item in inner for leaf in leaves(item))]


def test_other_forms_give_a_page_or_are_refused_in_a_sentence() -> None:
    whole, refused = json.dumps(full_data()), 0
    for seed in range(60):
        rng, data = random.Random(seed), json.loads(whole)
        for _ in range(rng.randint(1, 3)):
            holder, key = rng.choice(leaves(data))
            holder[key] = rng.choice([None, 0, -1.5, "text", [], {}, [1], True, "NaN"])
        with suppress(UsageError):
            page_of(data)
            continue
        refused += 1
    assert 0 < refused < 30


def test_a_run_that_failed_says_so_first() -> None:
    text = read_page(html_of(full_data())).texts
    assert any("Exit code 4: left out" in line for line in text)


@pytest.mark.parametrize("data", [{}, [], 3, {"models": []}, {"kind": "other"}])
def test_other_json_is_refused(data: Any) -> None:
    with pytest.raises(UsageError, match="no report of onnxslim"):
        page_of(data)


def test_a_step_that_was_left_out_is_hatched() -> None:
    data = full_data()
    data["passes"][0] |= {"committed": False, "why_not_committed": "it is too far"}
    html = html_of(data)
    assert 'class="bar out"' in html
    assert "it is too far" in html


def test_markdown_tables_are_whole() -> None:
    lines = page_markdown(page_of(replaced(full_data(), "y", HARM))).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert rows
    for before, row in itertools.pairwise(lines):
        if before.startswith("|") and row.startswith("|"):
            assert before.replace("\\|", "").count("|") == row.replace("\\|", "").count("|")


@pytest.mark.parametrize("suffix", [".html", ".md", ".json"])
def test_files_of_reports_are_known_again(suffix: str) -> None:
    path = Path(f"run{suffix}")
    assert PAGES.wrote(path, PAGES.to_bytes(full_data(), path)[:4096])
    assert not PAGES.wrote(path, b"{}")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian: chromium)")
def test_a_browser_shows_the_page_without_errors(tmp_path: Path) -> None:
    data = full_data()
    first = data["details"]["layers"][0]
    data["details"]["layers"] = [
        {**first, "name": name, "after": {**first["after"], "bytes": size}}
        for name, size in (("a", 10), ("b", 900), ("c", 40))
    ]
    tail = """<script>
      const all = (which) => [...document.querySelectorAll("#layers " + which)];
      all("th").find((head) => head.textContent == "bytes").click();
      const names = all("tbody tr").map((row) => row.querySelector("data").textContent);
      document.body.dataset.order = names.join("");
      document.body.dataset.asked = performance.getEntriesByType("resource").length;
      const root = document.documentElement;
      document.body.dataset.wide = root.scrollWidth - root.clientWidth;
    </script>"""
    found = seen(html_of(data), tmp_path, tail)
    assert found.console == []
    assert 'data-order="bca"' in found.dom
    assert 'data-asked="0"' in found.dom
    assert 'data-wide="0"' in found.dom
    shown = {(figure.at, figure.value) for figure in check_figures(found.dom)}
    assert ("/latency/ratio", "2.0") in shown
    assert json.loads(json.dumps(data_in(found.dom))) == data
