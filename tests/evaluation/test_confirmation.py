"""Confirmations of a study that was made without Keras: which runs are trained, compared and left out."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from mlflow.tracking._tracking_service import utils as mlflow_places

from digitcnn import evaluation, report, runner, study
from digitcnn.cli import tables
from digitcnn.config import ConfirmConfig, ReportConfig, RunConfig, SweepConfig, load_config
from digitcnn.errors import ConfigError, MachineError
from digitcnn.evaluation import confirmation
from digitcnn.evaluation.ablation import compare_steps
from digitcnn.evaluation.plan import RecordedRuns
from digitcnn.evaluation.verdicts import Looks
from digitcnn.runner.plan import Speed
from digitcnn.runner.study_run import recorded_outcome
from digitcnn.tracking import open_store, put_files, study_runs
from tests.conftest import ONE_WORKER, Command, with_study
from tests.support.sweeps import During, Quiet, work
from tests.support.trainers import ConfirmingTrainer, InstantTrainer, LuckyTrainer, StoppingTrainer


@pytest.fixture(scope="module")
def swept(small_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    """A study of 3 trials that was made without Keras, for copies: the baseline has batches of 50."""
    tree = {
        "data": {"path": str(small_npz), "validation_size": 100},
        "training": {"epochs": 2, "batch_size": 50, "threads": 1},
        "tracking": {"root": str(tmp_path_factory.mktemp("swept") / "records")},
        "study": {"name": "small", "objective": "validation_accuracy", "trials": 3, "sampler": "grid"}
        | {"pruner": "none", "space": {"training": {"batch_size": [50, 100, 200]}}},
        "workers": ONE_WORKER,
    }
    config = load_config(SweepConfig, tree)
    work(config, InstantTrainer())
    return config


@pytest.fixture
def config(swept: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfirmConfig:
    """A confirmation of a copy of that study, with two candidates and two seeds."""
    root = shutil.copytree(swept.tracking.folder, tmp_path / "records")
    # In one process MLflow remembers where a run's artifacts were, which a copy changes.
    monkeypatch.setattr(mlflow_places, "_artifact_repos_cache", type(mlflow_places._artifact_repos_cache)())
    tree = {"study": {"name": "small"}, "tracking": {"root": str(root)}}
    return load_config(ConfirmConfig, {**tree, "confirm": {"top": 2, "seeds": 2}, "workers": ONE_WORKER})


def _confirm(config: ConfirmConfig, *diverging: tuple[int, int]) -> tuple[confirmation.ConfirmationResult, Quiet]:
    shown = Quiet()
    result = evaluation.run_confirmation(
        evaluation.plan_confirmation(config), shown, ConfirmingTrainer(diverging=diverging)
    )
    return result, shown


def _statuses(config: ConfirmConfig) -> Counter[tuple[str, str]]:
    """Return the number of confirming runs by batch size and status."""
    store = open_store(config.tracking)
    found = study_runs(store, "small", "confirms")
    return Counter((run.data.params["training.batch_size"], run.info.status) for run in found)


def test_study_of_a_key_whose_baseline_is_null_is_swept_confirmed_and_reported(
    swept: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a grid of two batch sizes and two numbers of steps, one of which is null.
    monkeypatch.setenv("COLUMNS", "160")
    root = {"root": str(tmp_path / "records")}
    space = {"training": {"batch_size": [50, 100], "steps_per_epoch": [5]}}
    config = with_study(load_config(SweepConfig, {**swept.model_dump(), "tracking": root}), trials=4, space=space)
    # When
    plan = runner.plan_sweep(config)
    preview = runner.describe_sweep(plan, Speed(1000.0, 1000.0, 500.0))
    result = work(config, InstantTrainer())
    tables.print_leaderboard(result.leaderboard, list(plan.space), config.study.objective)
    tree = {"study": {"name": "small"}, "tracking": root, "confirm": {"top": 3, "seeds": 2}, "workers": ONE_WORKER}
    confirm = load_config(ConfirmConfig, tree)
    confirmed, shown = _confirm(confirm)
    again = evaluation.describe_confirmation(evaluation.plan_confirmation(confirm))
    written = report.write_report(load_config(ReportConfig, {"study": {"name": "small"}, "tracking": root})).parent
    # Then
    assert "  training.steps_per_epoch  one of 5, null; baseline null" in preview
    network = "0.844 million parameters, 2.86 million multiply-adds an image"
    assert f"networks: {network}; of 500 drawn {network}" in preview
    assert any("1,000 images/s and 500 MB a worker, measured" in line for line in preview)
    steps = dict(zip(result.leaderboard["trial"], result.leaderboard["training.steps_per_epoch"], strict=True))
    assert steps[0] == "null"
    assert sorted(map(str, steps.values())) == ["5", "5", "null", "null"]
    assert capsys.readouterr().out.count("null") == 2
    assert work(config, InstantTrainer()).finished == 4
    points = confirmed.table[["training.batch_size", "training.steps_per_epoch"]].to_numpy().tolist()
    assert points[0] == [50, "null"]
    assert sorted(map(str, points)) == ["[100, 'null']", "[100, 5]", "[50, 'null']", "[50, 5]"]
    assert len(shown.endings) == 8
    assert sum("; all recorded" in line for line in again) == 4
    for file in ("leaderboard.csv", "confirmation.csv", "report.md"):
        text = (written / file).read_text()
        assert len(re.findall(r"\bnull\b", text)) == 2, file
        assert "None" not in text
    assert "is not among the confirmed ones" not in (written / "report.md").read_text()


@pytest.mark.parametrize("least", [0.0, 0.6])
def test_confirming_runs_have_the_epochs_after_which_trials_stopped_early(
    least: float, swept: SweepConfig, tmp_path: Path
) -> None:
    """Given a baseline that keeps the study's constraint, or breaks it."""
    tree, records = swept.model_dump(), {"root": str(tmp_path / "records")}
    tree["training"] |= {"epochs": 9, "early_stopping": 1}
    tree["study"]["constraints"] = {"validation_accuracy": {"min": least}}
    sweep = load_config(SweepConfig, {**tree, "tracking": records})
    work(sweep, StoppingTrainer())
    plan = evaluation.plan_confirmation(
        load_config(ConfirmConfig, {"study": {"name": "small"}, "tracking": records, "workers": ONE_WORKER})
    )
    assert plan.candidates[0].feasible == (least == 0.0)
    # A run takes a second an epoch.
    assert [each.cpu_seconds for each in plan.candidates] == [1.0, 4.0, 2.0]
    configs = {each.parameters["training.batch_size"]: each.config for each in plan.candidates}
    for size, epochs in {50: 1, 100: 2, 200: 4}.items():
        assert configs[size].data.validation == "test_once"
        assert (configs[size].training.epochs, configs[size].training.early_stopping) == (epochs, None)
    store = open_store(sweep.tracking)
    for trial in study.ended_trials(study.recorded_study(plan.config.study, sweep.tracking.folder)):
        repeated = evaluation.manifest_of(store, str(trial.record.run_id)).config
        epochs = trial.parameters["training.batch_size"] // 50
        assert (repeated.training.epochs, repeated.training.early_stopping) == (epochs, None)
        assert (trial.record.epochs_run, recorded_outcome(store, str(trial.record.run_id)).epochs) == (epochs, epochs)


def test_confirmation_leaves_out_a_candidate_that_diverges(config: ConfirmConfig, messages: list[str]) -> None:
    result, _ = _confirm(config, (200, 1))
    table = result.table.set_index("config")
    names = {row.trial: row.Index for row in table.itertuples()}
    diverged = next(name for name in names.values() if table.loc[name, "training.batch_size"] == 200)
    other = next(name for name in names.values() if table.loc[name, "training.batch_size"] == 100)
    assert table.loc[diverged, ["verdict", "diverged_seed"]].tolist() == ["diverged", 1]
    assert (table.loc[diverged, "n"], table.loc[other, "n"], table.loc["baseline", "n"]) == (0, 2, 2)
    assert set(result.runs["config"]) == {"baseline", other}
    # Its other seed was not begun.
    expected = {("50", "FINISHED"): 2, ("100", "FINISHED"): 2, ("200", "FAILED"): 1}
    assert _statuses(config) == expected
    assert f"{diverged} diverged with seed 1 and is left out of the comparison" in evaluation.verdict_sentences(
        result.table
    )
    card = result.champion_path.read_text()
    assert f"# Left out: {diverged}, which diverged with seed 1." in card
    assert "# Compared: 1 candidate at look 1, by simultaneous" in card
    # The same again trains nothing.
    messages.clear()
    again, shown = _confirm(config, (200, 1))
    assert messages == [f"{diverged} diverged with seed 1: it is left out"]
    assert shown.endings == []
    assert _statuses(config) == expected
    pd.testing.assert_frame_equal(again.table, result.table)
    # With more seeds it is not tried again either, and the report tells of it.
    more = load_config(ConfirmConfig, config.model_dump() | {"confirm": {"top": 2, "seeds": 3}})
    _confirm(more)
    assert _statuses(config) == {("50", "FINISHED"): 3, ("100", "FINISHED"): 3, ("200", "FAILED"): 1}
    page = report.write_report(ReportConfig(study=config.study, tracking=config.tracking))
    assert "<td>diverged with seed 1</td>" in page.read_text()
    assert f"- {diverged} diverged with seed 1" in (page.parent / "report.md").read_text()


def test_confirmation_makes_the_baseline_champion_if_all_others_diverge(config: ConfirmConfig) -> None:
    result, _ = _confirm(config, (200, 2), (100, 1))
    assert result.champion == "baseline"
    assert result.table["verdict"].tolist()[1:] == ["diverged"] * 2
    assert result.table["diverged_seed"].tolist()[1:] == [2, 1]
    page = report.write_report(ReportConfig(study=config.study, tracking=config.tracking))
    assert "<td>diverged with seed 2</td>" in page.read_text()


def test_confirmation_ends_if_the_baseline_diverges(config: ConfirmConfig) -> None:
    line = "the baseline diverged with seed 1: there is nothing to compare the others with"
    for _ in range(2):
        with pytest.raises(MachineError, match=line):
            _confirm(config, (50, 1))
        assert _statuses(config)["50", "FAILED"] == 1
    assert not (config.tracking.folder / "reports" / "small" / "champion.yaml").exists()


def test_run_that_has_no_parameters_yet_hinders_no_confirmation_and_no_status(
    config: ConfirmConfig, command: Command
) -> None:
    """Given a run whose process ended as it had created it."""
    store, plan = open_store(config.tracking), evaluation.plan_confirmation(config)
    tags = {"study": "small", "confirms": "baseline", "mlflow.parentRunId": plan.parent_run_id}
    store.client.create_run(store.experiment_id, tags=tags, run_name="baseline, seed 1")
    with study.only_process(config.tracking.folder, "small"):
        ended = command("status", "study=small", f"tracking.root={config.tracking.root}")
    assert "  baseline, seed 1: epoch 0 of 0\n" in ended.stdout, ended.stderr
    result, _ = _confirm(config)
    assert result.table["n"].tolist() == [2] * 3


def test_describe_confirmation_counts_what_is_missing(config: ConfirmConfig) -> None:
    """Given two seeds' runs and a candidate that diverged, the preview counts one run for each of the others."""
    _confirm(config, (200, 1))
    nothing = evaluation.describe_confirmation(evaluation.plan_confirmation(config))
    assert nothing[-1] == "nothing is missing: confirm compares what is recorded"
    assert re.match(
        r"look 1 at this study: 2 seeds find differences of \d+\.\d\d points and more with 80 %", nothing[1]
    )
    assert [line.rpartition("; ")[2] for line in nothing[2:5]] == [
        "all recorded",
        "diverged with seed 1: left out",
        "all recorded",
    ]
    before = _statuses(config)
    more = load_config(ConfirmConfig, config.model_dump() | {"confirm": {"top": 2, "seeds": 3}})
    lines = evaluation.describe_confirmation(evaluation.plan_confirmation(more))
    assert lines[0] == "confirmation of study small: 3 configs x 3 seeds"
    assert re.match(r"look 2 at this study: 3 seeds find differences of ", lines[1])
    assert [line.partition("; ")[2].partition(", ")[0] for line in lines[2:5]] == [
        "1 of 3 runs to come",
        "diverged with seed 1: left out",
        "1 of 3 runs to come",
    ]
    assert re.fullmatch(r"1 worker of \d+ threads?: as workers.count says", lines[5])
    assert re.fullmatch(r"time: about \d+ s for 2 runs", lines[6])
    assert _statuses(config) == before


def _asked(config: ConfirmConfig, **settings: object) -> confirmation.ConfirmationResult:
    """Confirm with other settings; return the result."""
    values = config.model_dump()
    result, _ = _confirm(load_config(ConfirmConfig, values | {"confirm": {**values["confirm"], **settings}}))
    return result


def test_whatever_is_asked_the_verdict_rests_on_all_that_is_recorded(config: ConfirmConfig) -> None:
    """Given 8 seeds of 2 candidates, fewer seeds or candidates change no verdict, no champion and no look."""
    first = _asked(config, top=2, seeds=8)
    champion = first.champion_path.read_text()
    assert first.table["n"].tolist() == [8] * 3
    for asked in ({"seeds": 7}, {"seeds": 5}, {"top": 1, "seeds": 4}, {"top": 1, "seeds": 8}):
        again = _asked(config, **asked)
        pd.testing.assert_frame_equal(again.table, first.table)
        assert again.champion_path.read_text() == champion
    looks = pd.read_csv(config.tracking.folder / "reports" / "small" / "confirmation_looks.csv")
    assert looks["look"].tolist() == [1] * 3
    assert looks["n"].tolist() == [8] * 3


def test_candidate_that_is_clearly_behind_gets_no_more_seeds(config: ConfirmConfig) -> None:
    tree = config.model_dump()
    plan = evaluation.plan_confirmation(load_config(ConfirmConfig, tree | {"confirm": {"top": 2, "seeds": 5}}))
    reached = dict(zip((each.name for each in plan.candidates), (0.9, 0.9, 0.5), strict=True))
    accuracies = {(name, seed): reached[name] for name in reached for seed in plan.seeds[:3]}
    recorded = RecordedRuns(plan.candidates, dict.fromkeys(accuracies, "run"), accuracies, {})
    behind = plan.candidates[2].name
    assert recorded.over(plan) == {behind: "behind the best after 3 seeds: no more"}
    to_come = [(each.name, seed) for each, seed in recorded.missing(plan)]
    assert to_come == [(name, seed) for seed in plan.seeds[3:] for name in reached if name != behind]
    # What it does not need a budget has for the others: 9 of 16 runs were made.
    budget = load_config(ConfirmConfig, tree | {"confirm": {"top": 2, "cpu_budget": "16s"}})
    spent = replace(recorded, cpu_seconds=dict.fromkeys(accuracies, 1.0))
    to_come = [(each.name, seed) for each, seed in spent.missing(evaluation.plan_confirmation(budget))]
    assert to_come == [(name, plan.seeds[0] + index) for index in (3, 4, 5) for name in reached if name != behind]


def test_budget_of_cpu_time_buys_the_same_seeds_for_all(config: ConfirmConfig) -> None:
    """Given runs of 2 s in the search and 1 s in the confirmation."""
    with pytest.raises(ConfigError, match="confirm.cpu_budget=11s: two seeds of each config take about 12 s of CPU"):
        _asked(config, cpu_budget="11s")
    asked = load_config(ConfirmConfig, config.model_dump() | {"confirm": {"top": 2, "cpu_budget": "14s"}})
    lines = evaluation.describe_confirmation(evaluation.plan_confirmation(asked))
    assert lines[0].endswith(": 3 configs, 14s of CPU time, 0 s of it spent: it buys 2 seeds")
    assert _asked(config, cpu_budget="14s").table["n"].tolist() == [4] * 3
    # Nothing is left of it for a seed of all, and what is recorded is spent.
    again, shown = _confirm(asked)
    assert (again.table["n"].tolist(), set(again.table["look"]), shown.endings) == ([4] * 3, {1}, [])
    more = _asked(config, cpu_budget="16s")
    assert (more.table["n"].tolist(), set(more.table["look"])) == ([5] * 3, {2})


def test_every_look_is_counted_recorded_and_said(config: ConfirmConfig) -> None:
    for asked, look in (({"top": 1, "seeds": 2}, 1), ({"top": 1, "seeds": 3}, 2), ({"top": 2, "seeds": 3}, 3)):
        result = _asked(config, **asked)
        assert set(result.table["look"]) == {look}
        assert evaluation.verdict_sentences(result.table)[-1].startswith(f"look {look} at this study: ")
    parent = evaluation.plan_confirmation(config).parent_run_id
    store = open_store(config.tracking)
    recorded = Looks.read(store, parent).table
    assert recorded.groupby("look")["n"].apply(list).to_dict() == {1: [2, 2], 2: [3, 3], 3: [3, 3, 3]}
    assert recorded[recorded["config"] != "baseline"]["p"].notna().all()


def test_a_confirmation_that_was_given_up_counts_as_a_look_for_each_seed_that_it_showed() -> None:
    looks = Looks(pd.DataFrame(columns=["look"])).announced(1, {"baseline": 30, "trial 1": 30}, 0.001)
    seen = {"baseline": 17, "trial 1": 17}
    # Resumed as it was announced, it is the look that it was.
    assert looks.number({"baseline": 30, "trial 1": 30}, seen) == 1
    assert looks.number({"baseline": 17, "trial 1": 17}, seen) == 18
    # Nor does a budget that goes on begin another look, though its seeds are not known before.
    bought = looks.announced(1, {"baseline": 30, "trial 1": 30}, 0.001, 60.0)
    assert bought.number({"baseline": 9, "trial 1": 9}, seen, 60.0) == 1
    assert bought.number({"baseline": 9, "trial 1": 9}, seen, 90.0) == 18
    assert bought.number({"baseline": 30, "trial 1": 30}, seen) == 18
    # What had not begun showed nothing.
    assert looks.number({"baseline": 5, "trial 1": 5}, {"baseline": 0, "trial 1": 0}) == 1


def _cut_off(config: ConfirmConfig, asked: ConfirmConfig, after: str) -> list[str]:
    """Confirm with accuracies that follow from the batch size alone, up to the end of a run; preview what is asked."""

    def fault() -> None:
        raise RuntimeError("cut off")

    plan = evaluation.plan_confirmation(config)
    with pytest.raises(RuntimeError, match="cut off"):
        evaluation.run_confirmation(plan, During(after, fault), InstantTrainer())
    return evaluation.describe_confirmation(evaluation.plan_confirmation(asked))


def test_confirmation_that_goes_on_without_who_is_out_of_the_race_is_the_same_look(config: ConfirmConfig) -> None:
    tree = config.model_dump()
    asked = load_config(ConfirmConfig, tree | {"confirm": {**tree["confirm"], "seeds": 5}})
    lines = _cut_off(asked, asked, "baseline, seed 4")
    assert [line.rpartition("; ")[2].partition(",")[0] for line in lines[2:5]] == [
        "1 of 5 runs to come",
        "2 of 5 runs to come",
        "behind the best after 3 seeds: no more",
    ]
    assert lines[1].startswith("look 1 at this study: 5 seeds find ")


def test_preview_of_fewer_candidates_promises_what_their_seeds_find(config: ConfirmConfig) -> None:
    """Given one seed of each of two candidates, of which one is asked for."""
    tree = config.model_dump()
    fewer = load_config(ConfirmConfig, tree | {"confirm": {**tree["confirm"], "top": 1}})
    last = evaluation.plan_confirmation(config).candidates[-1].name
    lines = _cut_off(config, fewer, f"{last}, seed 1")
    assert lines[0] == "confirmation of study small: 2 configs x 2 seeds"
    assert lines[1].startswith("look 2 at this study: 2 seeds find ")
    assert [line.rpartition("; ")[2].partition(",")[0] for line in lines[2:5]] == [
        "1 of 2 runs to come",
        "1 of 2 runs to come",
        "all recorded",
    ]


def test_margin_is_chosen_before_anything_is_seen(config: ConfirmConfig) -> None:
    _asked(config, margin=0.002)
    with pytest.raises(ConfigError, match="confirm.margin=0.005: this study was looked at with 0.002; a margin is"):
        _asked(config, margin=0.005)
    with pytest.raises(ConfigError, match="confirm.margin=0.001"):
        evaluation.describe_confirmation(evaluation.plan_confirmation(config))
    assert set(_asked(config, margin=0.002, seeds=3).table["margin"]) == {0.002}


def test_runs_of_the_first_edition_count_as_one_look(config: ConfirmConfig) -> None:
    _asked(config, seeds=3)
    store, parent = open_store(config.tracking), evaluation.plan_confirmation(config).parent_run_id
    table = pd.read_csv(config.tracking.folder / "reports" / "small" / "confirmation.csv")
    old = table[["config", "trial", "n", "difference", "p", "verdict"]].to_csv(index=False)
    gone = Path(store.client.get_run(parent).info.artifact_uri.removeprefix("file://")) / "confirmation_looks.csv"
    gone.unlink()
    put_files(store, parent, {"confirmation.csv": old})
    assert Looks.read(store, parent).number({"baseline": 4, "a": 4, "b": 4}, {}) == 2


def test_ablation_tells_what_each_change_brings_and_names_no_champion(swept: SweepConfig, tmp_path: Path) -> None:
    """Given a grid of two changes: the steps are trials too, and those that were confirmed are not trained again."""
    root = {"root": str(tmp_path / "records")}
    space = {"training": {"batch_size": [50, 100], "epochs": [2, 3]}}
    sweep = with_study(load_config(SweepConfig, {**swept.model_dump(), "tracking": root}), trials=4, space=space)
    work(sweep, InstantTrainer())
    tree = {"study": {"name": "small"}, "tracking": root, "workers": ONE_WORKER}
    _confirm(load_config(ConfirmConfig, tree | {"confirm": {"top": 3, "seeds": 3}}))
    asked = tree | {"confirm": {"top": 1, "seeds": 3, "ablation": True}}
    result, shown = _confirm(load_config(ConfirmConfig, asked))
    assert result.ablation is not None
    assert (shown.endings, result.ablation["n"].tolist()) == ([], [3] * 4)
    more = load_config(ConfirmConfig, tree | {"confirm": {"top": 1, "seeds": 4, "ablation": True}})
    result, shown = _confirm(more)
    table = result.ablation
    assert table is not None
    best = evaluation.plan_confirmation(more).candidates[1].name
    assert table["config"].tolist() == [
        f"{change}, {place}"
        for change in ("batch size 50 to 100", "epochs 2 to 3")
        for place in ("alone", f"in {best}")
    ]
    confirmed = result.table.set_index("config")
    # Without Keras the number of epochs changes nothing.
    assert table["difference"].tolist() == pytest.approx([*[confirmed.loc[best, "difference"]] * 2, 0.0, 0.0])
    assert (table["n"].tolist(), set(table["look"]), len(shown.endings)) == ([4] * 4, {2}, 4)
    # Candidates and champion are the confirmation's, and no step among them.
    assert confirmed["n"].tolist() == [4, 4, 3, 3]
    steps = study_runs(open_store(more.tracking), "small", "ablates")
    assert {(run.data.tags["ablates"], run.data.params["training.seed"]) for run in steps} == {
        (name, "4") for name in ("batch size alone", "epochs alone")
    }
    assert {run.data.tags["mlflow.parentRunId"] for run in steps} == {evaluation.plan_confirmation(more).parent_run_id}
    lines = evaluation.describe_confirmation(evaluation.plan_confirmation(more))
    assert lines[0] == "confirmation of study small: 2 configs and 2 steps of the ablation x 4 seeds"
    assert "  epochs alone: training.epochs 3; all recorded" in lines
    page = report.write_report(load_config(ReportConfig, {"study": {"name": "small"}, "tracking": root}))
    assert 'id="ablation"' in page.read_text()
    assert f"<td>epochs 2 to 3, in {best}</td><td>4</td><td>+0.00</td>" in page.read_text()
    assert re.search(r"\| batch size 50 to 100, alone \| 4 \| \+\d\.\d\d \|", (page.parent / "report.md").read_text())
    with pytest.raises(ConfigError, match="confirm.ablation=true: has confirm.seeds for each step"):
        load_config(ConfirmConfig, tree | {"confirm": {"ablation": True, "cpu_budget": "1h"}})


def test_confirmation_begins_above_every_searched_seed_and_ranks_by_the_mean(
    swept: SweepConfig, tmp_path: Path
) -> None:
    """Given a grid of batch sizes and seeds 0 to 2, whose luckiest run is not of the best batch size."""
    space = {"training": {"batch_size": [50, 100, 200], "seed": [0, 1, 2]}}
    config = load_config(SweepConfig, {**swept.model_dump(), "tracking": {"root": str(tmp_path / "records")}})
    work(with_study(config, trials=9, space=space), LuckyTrainer())
    tree = {"study": {"name": "small"}, "tracking": {"root": str(tmp_path / "records")}, "confirm": {"top": 1}}
    plan = evaluation.plan_confirmation(load_config(ConfirmConfig, tree))
    assert plan.seeds == (3, 4, 5, 6, 7)
    assert [each.parameters["training.batch_size"] for each in plan.candidates] == [50, 100]
    assert [each.parameters["training.batch_size"] for each in plan.others] == [200]


def test_ablation_writes_changes_as_a_leaderboard_does() -> None:
    baseline = RunConfig()
    best = baseline.replace({"training.learning_rate": 0.005886891057333411, "augmentation.shift": 0.04})
    names = ("baseline", "learning rate alone", "shift alone", "trial 7")
    values = {name: {seed: 0.99 + 0.0001 * seed * place for seed in (1, 2)} for place, name in enumerate(names)}
    table = compare_steps(baseline, best, "trial 7", values, pd.DataFrame({"look": [1], "margin": [0.001]}))
    assert set(table["config"].str.partition(", ")[0]) == {"learning rate 0.001 to 0.005887", "shift 0 to 0.04"}
