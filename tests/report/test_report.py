"""The report: what its page says and shows, that it opens offline, and runs side by side."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import io
import json
import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState, create_trial
from plotly.offline import get_plotlyjs_version

from digitcnn import evaluation, report, runner, study, tracking
from digitcnn.config import (
    ConfirmConfig,
    DiffConfig,
    ReportConfig,
    StudyReference,
    SweepConfig,
    TrackingConfig,
    load_config,
)
from digitcnn.errors import ConfigError
from digitcnn.report import views
from digitcnn.report.page import _tradeoffs
from digitcnn.study import parse_space
from digitcnn.study.space import distributions
from digitcnn.tracking import queries
from tests.conftest import ONE_WORKER, Command, small_run, with_study
from tests.support import sweeps
from tests.support.browser import BROWSER
from tests.support.servers import mlflow_server
from tests.support.sweeps import Quiet, work
from tests.support.trainers import ConfirmingTrainer, InstantTrainer

# The study is confirmed once.
pytestmark = pytest.mark.xdist_group("report")

PLANTED = '<script>document.title = "planted"</script><img src="http://planted.example/x.png">'


def _config(root: Path, small_npz: Path, **values: object) -> SweepConfig:
    space = {"training": {"batch_size": [20, 50]}, "model": {"conv1_filters": {"low": 2, "high": 8}}}
    return load_config(
        SweepConfig,
        {
            **small_run(small_npz, root).model_dump(),
            "study": {
                "name": "small",
                "objective": "validation_accuracy",
                "trials": 4,
                "pruner": "none",
                "space": space,
            }
            | values,
            "workers": ONE_WORKER,
        },
    )


def _written(root: Path) -> Path:
    """The folder of the report of the study in `root`, written now."""
    return report.write_report(_report(root)).parent


def _report(root: Path) -> ReportConfig:
    return ReportConfig(study=StudyReference(name="small"), tracking=TrackingConfig(root=str(root)))


def _opened(root: Path) -> optuna.Study:
    opened = study.existing_study(root, "small")
    assert opened is not None
    return opened


@pytest.fixture(scope="module")
def confirmed(small_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of a study with a failed trial whose failure is a script; confirmed by real training, and reported."""
    root = tmp_path_factory.mktemp("confirmed")
    work(_config(root, small_npz), InstantTrainer())
    opened = _opened(root)
    last = opened.trials[-1]
    opened.add_trial(
        create_trial(
            state=TrialState.FAIL,
            params=last.params,
            distributions=last.distributions,
            user_attrs={"failure": PLANTED, "run_id": last.user_attrs["run_id"]},
        )
    )
    settings = {"study": {"name": "small"}, "confirm": {"top": 1, "seeds": 2}, "workers": ONE_WORKER}
    config = load_config(ConfirmConfig, settings | {"tracking": {"root": str(root)}})
    evaluation.run_confirmation(evaluation.plan_confirmation(config), Quiet())
    _written(root)
    return root


class _Page(HTMLParser):
    """A page taken apart: its text, its scripts, and every attribute."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.element = "", ""
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.element = tag
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.element = ""
        self.text += " "

    def handle_data(self, data: str) -> None:
        if self.element == "script":
            self.scripts[-1] += data
        elif self.element != "style":
            self.text += data

    @property
    def figures(self) -> dict[str, Any]:
        return dict(json.loads(_unpacked(self.scripts[0])))


def _unpacked(text: str) -> str:
    return gzip.decompress(base64.b64decode(text)).decode()


def test_page_tells_what_was_asked_and_found(confirmed: Path) -> None:
    folder = confirmed / "reports" / "small"
    text = " ".join(_Page(folder / "report.html").text.split())
    assert "Which values of training.batch_size and model.conv1_filters give a higher validation accuracy" in text
    assert "training.batch_size one of 20, 50 50" in text
    table = pd.read_csv(folder / "confirmation.csv")
    candidate = table.iloc[1]
    assert f"{100 * candidate['difference']:+.2f} points ({100 * candidate['difference_low']:+.2f} to" in text
    assert evaluation.verdict_of_row(evaluation.read_confirmation(folder / "confirmation.csv", None).iloc[1]) in text
    assert "Look 1 at this study: intervals, p and verdicts hold together for 1 candidate" in text
    champion = table[table["champion"]]["config"].iloc[0]
    runs = pd.read_csv(folder / "confirmation_runs.csv")
    first = runs[runs["config"] == champion].iloc[0]
    wrong = round(100 * (1 - first["test_accuracy"]))
    named = "the baseline" if champion == "baseline" else champion
    assert f"The champion is {named}. Its model, of run {first['run_id']} with seed 1, has {wrong} of 100" in text
    assert f"digitcnn reproduce run={first['run_id']} tracking.root={confirmed}" in text
    assert all(name in text for name in ("version.tensorflow", "data_sha256", "git.commit", "cpu"))


def test_page_shows_the_champions_own_mistakes(confirmed: Path, small_npz: Path) -> None:
    from PIL import Image

    folder = confirmed / "reports" / "small"
    page = _Page(folder / "report.html")
    client = MlflowClient(f"sqlite:///{confirmed}/mlflow.db")
    run_id = client.get_model_version_by_alias("digitcnn", "champion").run_id
    predicted = pd.read_csv(client.download_artifacts(run_id, "test_predictions.csv"))
    wrong = predicted[predicted["predicted"] != predicted["label"]]
    worst = wrong.sort_values(["probability", "image"], ascending=[False, True]).iloc[0]
    assert f"{worst['label']:.0f} taken for {worst['predicted']:.0f}" in page.text
    source = next(value for tag, name, value in page.attributes if (tag, name) == ("img", "src"))
    with np.load(small_npz) as data, Image.open(io.BytesIO(_decoded(source))) as picture:
        assert np.array_equal(255 - np.asarray(picture), data["x_test"][int(worst["image"])])
    counts = _counts(page.figures["confusion"])
    assert sum(counts) == 100
    assert sum(counts[i * 10 + i] for i in range(10)) == 100 - len(wrong)


def _decoded(address: str) -> bytes:
    head, _, data = address.partition(",")
    assert head == "data:image/png;base64"
    return base64.b64decode(data)


def _counts(figure: dict[str, Any]) -> list[int]:
    return [int(text or 0) for row in figure["data"][0]["text"] for text in row]


def test_page_is_whole_and_names_no_address(confirmed: Path) -> None:
    page = _Page(confirmed / "reports" / "small" / "report.html")
    figures, library, drawing = page.scripts
    head = _unpacked(library)[:200]
    assert f"plotly.js (cartesian - minified) v{get_plotlyjs_version()}\n" in head, (
        "of plotly's version: report/page.py"
    )
    assert (confirmed / "reports" / "small" / "report.html").stat().st_size < 10**6
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    loaded = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in loaded)
    rest = (confirmed / "reports" / "small" / "report.html").read_text().replace(library, "")
    assert not re.search(r"url\(|@import|mathjax|cdn\.", rest, re.IGNORECASE)
    assert "http" not in _unpacked(figures) + drawing
    # All that the part of plotly.js in the page is asked to draw.
    assert {trace["type"] for each in page.figures.values() for trace in each["data"]} == {
        *("scatter", "bar", "heatmap")
    }


def test_page_shows_recorded_markup_as_text(confirmed: Path) -> None:
    folder = confirmed / "reports" / "small"
    page = _Page(folder / "report.html")
    assert PLANTED in page.text
    assert len(page.scripts) == 3
    assert "<script" not in (folder / "report.md").read_text()


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_page_is_drawn_by_a_browser_that_asks_for_nothing(confirmed: Path, tmp_path: Path) -> None:
    page = confirmed / "reports" / "small" / "report.html"
    drawn, requested = _browse(page, tmp_path / "report")
    assert requested == []
    assert "<title>Study small</title>" in drawn
    names = _Page(page).figures
    assert {
        "intervals",
        "candidates",
        "history0",
        "tuning",
        "parallel",
        "tradeoff0",
        "confusion",
        "curves_validation_accuracy",
    } <= set(names)
    charts_drawn = re.findall(
        r'<div class="chart[^"]*js-plotly-plot" id="([\w.]+)" role="img" aria-label="Chart: \w', drawn
    )
    assert sorted(charts_drawn) == sorted(names)
    assert drawn.count("<summary>Show as a table</summary>") == len(names) - 1
    asking = tmp_path / "asking.html"
    asking.write_text('<img src="http://elsewhere.example/x.png">')
    assert _browse(asking, tmp_path / "asking")[1] == ["http://elsewhere.example/x.png"]


def _browse(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's elements after its scripts have run, and what it asked the network for; all names lead nowhere."""
    log = profile.with_suffix(".json")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}", "--virtual-time-budget=20000"]
    assert BROWSER is not None
    ended = subprocess.run(
        [BROWSER, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=240, check=True
    )
    recorded = json.loads(log.read_text())
    started = recorded["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    requests = [event.get("params", {}) for event in recorded["events"] if event["type"] == started]
    # What the browser asks for itself has no origin; a page in a file has the origin "null".
    return ended.stdout, [each["url"] for each in requests if each.get("initiator", "not an origin") == "null"]


def test_write_report_records_its_files_on_the_studys_run(confirmed: Path) -> None:
    folder = confirmed / "reports" / "small"
    client = MlflowClient(f"sqlite:///{confirmed}/mlflow.db")
    parent = _opened(confirmed).user_attrs["parent_run_id"]
    for name in ("report.html", "report.md", "leaderboard.csv", "learning_curves.csv"):
        assert Path(client.download_artifacts(parent, name)).read_bytes() == (folder / name).read_bytes()
    curves = pd.read_csv(folder / "learning_curves.csv")
    for run_id, rows in curves[curves["state"] == "complete"].groupby("run_id"):
        history = client.get_metric_history(str(run_id), "validation_accuracy")
        assert dict(zip(rows["epoch"], rows["validation_accuracy"], strict=True)) == {
            point.step: point.value for point in history
        }
    summary = (folder / "report.md").read_text()
    assert "| rank | trial | training.batch_size |" in summary
    assert "Can early epochs be trusted? Epoch 1 has a rank correlation of " in summary
    assert "the baseline has " in summary


def test_metric_histories_are_whole_when_an_answer_is_cut_off(confirmed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tracking.open_store(TrackingConfig(root=str(confirmed)))
    ids = [trial.user_attrs["run_id"] for trial in _opened(confirmed).trials[:4]]
    expected = {
        run_id: {point.step: point.value for point in store.client.get_metric_history(run_id, "validation_loss")}
        for run_id in ids
    }
    assert tracking.metric_histories(store, ids, "validation_loss") == expected
    # Given an answer that was cut off, each run is asked for.
    monkeypatch.setattr(queries, "_MAX_VALUES", 3)
    assert tracking.metric_histories(store, ids, "validation_loss") == expected


@pytest.mark.soak
def test_write_report_reads_a_study_from_a_server(small_npz: Path, tmp_path: Path) -> None:
    with mlflow_server(tmp_path) as uri:
        config = _config(tmp_path / "here", small_npz, trials=3)
        config = load_config(
            SweepConfig, config.model_dump() | {"tracking": {"root": str(tmp_path / "here"), "uri": uri}}
        )
        work(config, InstantTrainer())
        path = report.write_report(ReportConfig(study=StudyReference(name="small"), tracking=config.tracking))
        curves = pd.read_csv(path.parent / "learning_curves.csv")
        assert sorted(curves["trial"].unique()) == [0, 1, 2]
        assert curves["validation_accuracy"].notna().all()
        assert "curves_validation_accuracy" in _Page(path).figures
        parent = _opened(tmp_path / "here").user_attrs["parent_run_id"]
        kept = Path(MlflowClient(uri).download_artifacts(parent, "report.html", str(tmp_path)))
        assert kept.read_bytes() == path.read_bytes()


def test_write_report_works_at_every_stage_of_a_study(small_npz: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, small_npz, trials=3, objective=["validation_accuracy", "cpu_seconds"])
    tracking.open_store(config.tracking)
    space = parse_space(config.study.space, config.baseline)
    # Given a study that has just been created,
    data = runner.check_run(config.baseline).sha256
    opened = study.open_study(tmp_path, config.study, space, config.baseline, data)
    page = _Page(_written(tmp_path) / "report.html")
    assert "No trial has completed yet." in page.text
    assert page.figures == {}
    # one whose first trial is running,
    opened.ask(distributions(space))
    page = _Page(_written(tmp_path) / "report.html")
    assert "(1 running); a sweep is at work on it, or was cut off." in page.text
    # and one that was cut off then, resumed and finished,
    work(config, InstantTrainer())
    page = _Page(_written(tmp_path) / "report.html")
    assert "3 of 3 trials finished (3 complete, 1 lost)." in page.text
    assert "3 trials in all; trial 1 is the baseline." in " ".join(page.text.split())
    assert "best compromises between a higher validation accuracy and a lower CPU time" in page.text
    assert "There is no champion yet" in page.text
    # its search alone decides nothing, and says why.
    best = max(trial.values[0] for trial in _opened(tmp_path).trials if trial.values)
    error = 100 * evaluation.standard_error(best, 100)
    assert f"of an accuracy of {100 * best:.2f} % is {error:.2f} points (binomial, n = 100 images)" in page.text
    # Both objectives are drawn alike, and against each other once.
    slices = {f"slice{index}_{name}" for index in (0, 1) for name in space}
    assert {"history0", "history1", "tradeoff0"} | slices <= set(page.figures)
    assert "tradeoff1" not in page.figures


def test_pictures_show_completed_trials_alone(confirmed: Path) -> None:
    """Given a trial that was pruned, whose value is the last that its pruner saw."""
    store = tracking.open_store(TrackingConfig(root=str(confirmed)))
    found = report.read_study(store, StudyReference(name="small"), TrackingConfig(root=str(confirmed)))
    drawn = views._pictures(found)
    last = found.study.trials[-1]
    found.study.add_trial(
        create_trial(
            state=TrialState.PRUNED,
            params=last.params,
            distributions=last.distributions,
            value=0.5,
            intermediate_values={1: 0.5},
        )
    )
    assert set(drawn) == {"parameter_importance.png", "slices.png"}
    assert views._pictures(found) == drawn


def test_titles_keep_the_capitals_of_a_measure(confirmed: Path) -> None:
    store = tracking.open_store(TrackingConfig(root=str(confirmed)))
    found = report.read_study(store, StudyReference(name="small"), TrackingConfig(root=str(confirmed)))
    drawn = _tradeoffs(dataclasses.replace(found, objectives=("cpu_seconds", "parameters")))
    assert [title for _, title, *_ in drawn] == ["Validation accuracy against CPU time", "CPU time against weights"]


def test_write_report_refuses_an_unknown_study(confirmed: Path) -> None:
    with pytest.raises(ConfigError, match="study.name=other: no such study is recorded in"):
        report.write_report(
            ReportConfig(study=StudyReference(name="other"), tracking=TrackingConfig(root=str(confirmed)))
        )
    assert not (confirmed / "reports" / "other").exists()


def test_study_is_shown_when_its_mlflow_records_are_gone(root: Path, small_npz: Path, tmp_path: Path) -> None:
    # Given a copy of a study without its store, beside which another run was recorded since
    work(_config(root, small_npz), InstantTrainer())
    place = shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("mlflow.db"))
    config = _config(place, small_npz)
    tracking.create_training_run(tracking.open_store(config.tracking), config.baseline, "another", {}, None)
    # When
    written, status = _written(place), report.study_status(_report(place))
    # Then
    gone = "4 trials finished (4 complete); its records in MLflow are gone; the same command begins new ones."
    assert gone in (written / "report.md").read_text()
    assert gone in _Page(written / "report.html").text
    assert status[0] == f"study small: {gone}"
    assert report.present_study(StudyReference(name="small"), config.tracking) == {}


def test_study_is_shown_when_its_champions_run_was_deleted_for_good(
    root: Path, small_npz: Path, messages: list[str]
) -> None:
    config = _config(root, small_npz)
    work(config, InstantTrainer())
    sweeps.confirm(config, ConfirmingTrainer())
    table = (root / "reports" / "small" / "confirmation.csv").read_text()
    store = tracking.open_store(config.tracking)
    champion = tracking.champion_run(store)
    tracking.delete_runs(store, [champion], [])
    messages.clear()
    # When
    text = (_written(root) / "report.md").read_text()
    # Then
    assert "What decides it: digitcnn confirm study=small" in text
    assert messages == [
        f"study.name=small: run {champion} of its champion was deleted from MLflow for good, so that its confirmation "
        "is not shown; digitcnn confirm study=small makes it whole"
    ]
    # And so it does.
    sweeps.confirm(config, ConfirmingTrainer())
    assert (root / "reports" / "small" / "confirmation.csv").read_text() == table
    again = report.read_study(store, StudyReference(name="small"), config.tracking).confirmation
    assert again is not None
    assert again.manifest.run_id != champion


def test_compare_runs_shows_what_differs(confirmed: Path) -> None:
    config = TrackingConfig(root=str(confirmed))
    runs = pd.read_csv(confirmed / "reports" / "small" / "confirmation_runs.csv")
    baseline = runs[runs["config"] == "baseline"]["run_id"].tolist()

    def compare(*runs: str) -> report.RunComparison:
        reference = StudyReference(name="small")
        return report.compare_runs(DiffConfig(runs=list(runs), study=reference, tracking=config))

    found = compare(baseline[0][:8], baseline[1])
    assert list(found.differing.columns) == baseline
    assert found.differing.loc["training.seed"].tolist() == ["1", "2"]
    assert {"test_accuracy", "weights_sha256"} & set(found.differing.index)
    assert not {"training.batch_size", "parameters", "engine"} & set(found.differing.index)
    assert found.alike > 20
    for wanted, line in (
        (baseline[:1], "must name at least two runs"),
        ([baseline[0], baseline[0][:9]], "must name each run once"),
        ([baseline[0], "0" * 32], f"runs={'0' * 32}: no such run is recorded"),
    ):
        with pytest.raises(ConfigError, match=re.escape(line)):
            compare(*wanted)


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["report", "study=nowhere"], "error: study.name=nowhere: nothing is recorded in"),
        (["diff", "1234e567", "12345678"], "error: runs=1234e567,12345678: nothing is recorded in"),
    ],
)
def test_report_and_diff_refuse_unknown_names(typed: list[str], line: str, command: Command, tmp_path: Path) -> None:
    ended = command(*typed, f"tracking.root={tmp_path}/records")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert ended.stderr.startswith(line)
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "records").exists()


def test_report_command_writes_files_and_shows_differences(confirmed: Path, command: Command) -> None:
    ended = command("report", "study=small", f"tracking.root={confirmed}")
    assert ended.returncode == 0, ended.stderr
    assert str(confirmed / "reports" / "small" / "report.html") in ended.stdout
    runs = pd.read_csv(confirmed / "reports" / "small" / "confirmation_runs.csv")["run_id"].tolist()
    ended = command("diff", runs[0][:8], runs[-1][:8], f"tracking.root={confirmed}")
    assert ended.returncode == 0, ended.stderr
    assert re.search(rf"run +{runs[0][:8]} +{runs[-1][:8]}", ended.stdout)
    assert "the same in all:" in ended.stdout


def test_studies_of_samplers_and_pruners_that_are_gone_stay_readable(root: Path, small_npz: Path) -> None:
    """Given a study of an earlier version, searched by cmaes and pruned by hyperband, whose trials Optuna marked so."""
    config = _config(root, small_npz)
    work(config, InstantTrainer())
    with closing(sqlite3.connect(root / "mlflow.db")) as database, database:
        for key, value in (("sampler", "cmaes"), ("pruner", "hyperband")):
            database.execute("update params set value = ? where key = ?", (value, f"study.{key}"))
            database.execute("delete from tags where key = ?", (f"study.{key}",))
    with closing(sqlite3.connect(root / "optuna.db")) as database, database:
        for attribute in ("hyperband:bracket", "cma:optimizer:0"):
            database.execute(
                "insert into trial_system_attributes (trial_id, key, value_json) select trial_id, ?, '80' from trials",
                (attribute,),
            )
    assert "Search: sampler cmaes (seed 0), pruner hyperband" in _Page(_written(root) / "report.html").text
    store = tracking.open_store(config.tracking)
    best = evaluation.find_run(store, "best", StudyReference(name="small"), config.tracking)
    assert tracking.trained_run(store, best).data.params["training.batch_size"] == "50"
    settings = {"study": {"name": "small"}, "tracking": {"root": str(root)}}
    assert len(evaluation.plan_confirmation(load_config(ConfirmConfig, settings)).candidates) > 1
    # It goes on with a sampler that there is.
    assert runner.plan_sweep(with_study(config, trials=5)).total == 5
    for key, value in (("sampler", "cmaes"), ("pruner", "hyperband"), ("pruner", "successive_halving")):
        with pytest.raises(ConfigError, match=f"^study.{key}={value}: must be '.* or '[a-z]+'$"):
            with_study(config, **{key: value})


def test_write_report_counts_a_small_grid_as_finished(tmp_path: Path, small_npz: Path) -> None:
    # Given
    space = {"training": {"batch_size": [20, 50]}}
    work(_config(tmp_path, small_npz, sampler="grid", trials=9, space=space), InstantTrainer())
    # When
    text = (_written(tmp_path) / "report.md").read_text()
    # Then
    assert "2 of 2 trials finished" in text
    assert "Can early epochs be trusted?" not in text
