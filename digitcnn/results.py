"""What the published tables say, for a reader: RESULTS.md and README's lines, from the CSV files alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from digitcnn import leaderboard, provenance, statistics, verdicts
from digitcnn.statistics import Comparison, Summary

# Source: the article; one run of each network, on the test set.
NETWORKS = {"cnn": 0.9929, "mlp": 0.9801}
# The studies: as the article counts epochs, and at an equal number of images.
BATCH_SIZES = ("batch_size_article", "batch_size")
FILTERS, DEFAULT = "filters", "around_article"
# The tables of each question, and how all of them were made.
TABLES = {
    "article": ("article",),
    "batch_size": ("batch_size", "batch_size_curves"),
    "filters": ("filters",),
    "backends": ("backends",),
    "default": ("leaderboard", "confirmation", "confirmation_runs"),
    "made": ("provenance",),
}
ARTICLES_BATCH, ARTICLES_FILTERS = 250, (32, 64)
# One of the 10,000 images that judge a run, in validation as in test: no smaller difference can be seen.
_RESOLUTION = 1e-4
_ROWS = 5
_TEMPLATE = files("digitcnn") / "templates" / "results.md"

Tables = Mapping[str, pd.DataFrame]


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """The published tables by name: those whose files are there."""
    paths = {name: folder / f"{name}.csv" for names in TABLES.values() for name in names}
    return {name: parsed(name, path) for name, path in paths.items() if path.exists()}


def parsed(name: str, file: Path | TextIO) -> pd.DataFrame:
    """A published table from its CSV."""
    if name == "provenance":
        # Versions and commits are no numbers.
        texts = pd.read_csv(file, dtype=str, keep_default_na=False)
        return texts.astype(dict.fromkeys(("runs", "wall_seconds", "cpu_seconds"), int))
    table = pd.read_csv(file, float_precision="round_trip")
    if name == "confirmation":
        return table.fillna({"verdict": ""}).astype(dict.fromkeys(verdicts.COUNTS, "Int64"))
    return table


def text(tables: Tables) -> str:
    """RESULTS.md: a section for each question whose tables are there."""
    import jinja2

    sections: dict[str, Callable[[Tables], Any]] = {
        "article": _networks,
        "batch_size": _batch_size,
        "filters": _filters,
        "backends": _backends,
        "default": _default,
    }
    said = {name: section(tables) if has(tables, name) else None for name, section in sections.items()}
    made = tables["provenance"]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        headline="\n".join(headline(tables)),
        commands=lambda *parts: provenance.commands(made, parts),
        made=provenance.described(made),
        **said,
    )


def has(tables: Tables, question: str) -> bool:
    """Whether a question's tables are there."""
    return set(TABLES[question]) <= set(tables)


def headline(tables: Tables) -> list[str]:
    """The result in three lines, of the questions whose tables are there."""
    lines = {"article": _line_of_article, "batch_size": _line_of_batch_size, "default": _line_of_default}
    return [line(tables) for question, line in lines.items() if has(tables, question)]


def _line_of_article(tables: Tables) -> str:
    cnn, mlp = (statistics.summarize(_accuracies(tables["article"], network=name).tolist()) for name in NETWORKS)
    return (
        f"- The article's CNN gets {_mean(cnn)} of the test images right, its fully connected network {_mean(mlp)}; "
        f"the article says {_of(NETWORKS['cnn'])} and {_of(NETWORKS['mlp'])} %."
    )


def _line_of_batch_size(tables: Tables) -> str:
    smallest = int(tables["batch_size"]["training.batch_size"].min())
    as_article, equal = (batch_size_comparisons(tables, study)[smallest].difference for study in BATCH_SIZES)
    return (
        f"- Batch size {smallest} instead of {ARTICLES_BATCH}: {_points(as_article)} as the article counts epochs, "
        f"where larger batches see more images; {_points(equal)} at an equal number of images."
    )


def _line_of_default(tables: Tables) -> str:
    best = _best_candidate(tables["confirmation"])
    names = ("difference", "sd", "difference_low", "difference_high")
    measured = Summary(int(best["n"]), *(float(best[name]) for name in names))
    return (
        f"- The best of the default study, {best['config']}, instead of the article's settings: {_points(measured)} "
        f"on the test set, {best['verdict']}."
    )


def _networks(tables: Tables) -> dict[str, str]:
    rows, said = [], []
    values = {name: _accuracies(tables["article"], network=name) for name in NETWORKS}
    for name, reported in NETWORKS.items():
        low, high = statistics.prediction_interval(values[name].tolist())
        best = float(tables["article"].query("network == @name")["best_validation_accuracy"].mean())
        summary = _summary(statistics.summarize(values[name].tolist()))
        rows.append([name.upper(), *summary, f"{_of(low)} to {_of(high)}", _of(best), f"{_of(reported)} (n = 1)"])
        place = "within" if low <= reported <= high else "below" if reported < low else "above"
        said.append(f"The article's {_of(reported)} % is {place} what a single run of the {name.upper()} gives.")
    cnn = values["cnn"]
    over = f"{sum(value > 0.99 for value in cnn)} of {len(cnn)} runs of the CNN exceed 99 %"
    mean = (
        "and so does their mean"
        if statistics.summarize(cnn.tolist()).low > 0.99
        else "but the interval of their mean does not lie above it"
    )
    difference = _compare([(cnn, values["mlp"])])[0]
    head = ["network", *_SUMMARY, "a single run (95 %)", "best epoch", "article"]
    return {
        "table": _table(head, rows),
        "found": f"{over}, {mean}. {' '.join(said)} CNN against fully connected network: "
        f"{_points(difference.difference)}, p = {difference.p:.2g}.",
    }


def batch_size_comparisons(tables: Tables, study: str) -> dict[int, Comparison]:
    """Each batch size of a study against the article's, by batch size."""
    table = tables["batch_size"].query("study == @study")
    sizes = [int(size) for size in sorted(table["training.batch_size"].unique()) if size != ARTICLES_BATCH]
    articles, *others = (_accuracies(table, **{"training.batch_size": size}) for size in (ARTICLES_BATCH, *sizes))
    return dict(zip(sizes, _compare([(other, articles) for other in others]), strict=True))


def budget_comparisons(tables: Tables) -> dict[int, Comparison]:
    """The article's number of images against the equal one, by batch size."""
    table = tables["batch_size"]
    sizes = [int(size) for size in sorted(table["training.batch_size"].unique())]
    pairs = []
    for size in sizes:
        article, equal = (_accuracies(table, **{"study": s, "training.batch_size": size}) for s in BATCH_SIZES)
        pairs.append((article, equal))
    return dict(zip(sizes, _compare(pairs), strict=True))


def _batch_size(tables: Tables) -> dict[str, str]:
    found = {study: batch_size_comparisons(tables, study) for study in BATCH_SIZES}
    said = {}
    for study, name in zip(BATCH_SIZES, ("article", "equal"), strict=True):
        rows = []
        for size, part in tables["batch_size"].query("study == @study").groupby("training.batch_size"):
            summary = _summary(statistics.summarize(part["validation_accuracy"].tolist()))
            seen, updates = part["samples_seen"].iloc[0], part["updates"].iloc[0]
            against = _compared(found[study].get(int(str(size))))
            rows.append([str(size), f"{seen:,.0f}", f"{updates:,.0f}", *summary, *against])
        head = ["batch size", "images seen", "updates", *_SUMMARY, f"against {ARTICLES_BATCH} (points)", *_TEST]
        said[name] = _table(head, rows)
    seen = tables["batch_size"].groupby(["study", "training.batch_size"])["samples_seen"].first()
    rows = [
        [str(size), *(f"{seen[study, size]:,.0f}" for study in BATCH_SIZES), *_compared(each)]
        for size, each in budget_comparisons(tables).items()
    ]
    head = ["batch size", "images, article", "images, equal", "article against equal (points)", *_TEST]
    sentences = []
    for size in found[BATCH_SIZES[0]]:
        article, equal = (100 * found[study][size].difference.mean for study in BATCH_SIZES)
        sentences.append(
            f"From {ARTICLES_BATCH} to {size} the article's way of counting gives {article:+.2f} points: {equal:+.2f} "
            f"are the batch size's own, measured at an equal number of images, and {article - equal:+.2f} come with "
            "the number of images."
        )
    return said | {"budget": _table(head, rows), "found": " ".join(sentences)}


def filter_summaries(tables: Tables) -> pd.DataFrame:
    """A row per pair of filter counts: mean and sd of the accuracy, mean CPU seconds, and whether on the front."""
    groups = tables["filters"].groupby(["model.conv1_filters", "model.conv2_filters"])
    table = groups.agg(
        n=("seed", "size"),
        parameters=("parameters", "first"),
        mean=("validation_accuracy", "mean"),
        sd=("validation_accuracy", "std"),
        cpu_seconds=("cpu_seconds", "mean"),
    ).reset_index()
    dominated = leaderboard.dominates(np.column_stack([table["mean"], -table["cpu_seconds"]]))
    table["front"] = dominated.sum(axis=0) == 0
    return table


def variance_shares(tables: Tables) -> dict[str, float]:
    """Which share of the accuracies' variance each factor of the filters' grid explains by itself, and what is left.

    The analysis of variance of a full grid: sums of squares of the factors' means.
    """
    table = tables["filters"]
    factors = {"model.conv1_filters": "first layer", "model.conv2_filters": "second layer", "seed": "seed"}
    mean = table["validation_accuracy"].mean()
    total = float(((table["validation_accuracy"] - mean) ** 2).sum())
    shares = {}
    for column, name in factors.items():
        groups = table.groupby(column)["validation_accuracy"]
        shares[name] = float((groups.size() * (groups.mean() - mean) ** 2).sum()) / total
    return shares | {"their interplay and chance": 1 - sum(shares.values())}


def _filters(tables: Tables) -> dict[str, str]:
    summaries = filter_summaries(tables)
    pairs = list(zip(summaries["model.conv1_filters"], summaries["model.conv2_filters"], strict=True))
    values = [
        _accuracies(tables["filters"], **{"model.conv1_filters": first, "model.conv2_filters": second})
        for first, second in pairs
    ]
    articles = pairs.index(ARTICLES_FILTERS)
    others = [index for index in range(len(pairs)) if index != articles]
    compared = _compare([(values[index], values[articles]) for index in others])
    against = dict(zip(others, compared, strict=True))
    rows = []
    for index in np.argsort(summaries["cpu_seconds"].to_numpy(), kind="stable"):
        row = summaries.iloc[index]
        measured = [
            f"{row['parameters']:,}",
            str(row["n"]),
            _of(row["mean"]),
            _of(row["sd"]),
            f"{row['cpu_seconds']:.0f}",
        ]
        name, front = "-".join(map(str, pairs[index])), "yes" if row["front"] else ""
        rows.append([name, *measured, front, *_compared(against.get(int(index)))])
    versus = f"against {'-'.join(map(str, ARTICLES_FILTERS))} (points)"
    head = ["filters", "parameters", "n", "accuracy (%)", "sd", "CPU s", "front", versus, *_TEST]
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in variance_shares(tables).items())
    return {"table": _table(head, rows), "found": f"Of the variance of all accuracies in this grid: {shares}."}


def _backends(tables: Tables) -> dict[str, str]:
    table = tables["backends"]
    groups = {(str(backend), str(engine)): part for (backend, engine), part in table.groupby(["backend", "engine"])}
    reference = ("tensorflow", "keras")
    others = [name for name in groups if name != reference]
    values = {name: _accuracies(part) for name, part in groups.items()}
    compared = _compare([(values[name], values[reference]) for name in others])
    against = dict(zip(others, compared, strict=True))
    rows = []
    for name, part in groups.items():
        speed = part["images_per_second"]
        cells = [*name, *_summary(statistics.summarize(values[name].tolist()))]
        spread = f"{speed.median():,.0f} ({speed.min():,.0f} to {speed.max():,.0f})"
        rows.append([*cells, spread, *_compared(against.get(name))])
    head = [
        "backend",
        "engine",
        *_SUMMARY,
        "images/s, median (min to max)",
        "against TensorFlow's fit (points)",
        *_TEST,
    ]
    differ = [f"{backend}, {engine}" for (backend, engine), each in against.items() if each.p_holm < 0.05]
    found = (
        f"Not within the seeds of TensorFlow's fit: {'; '.join(differ)}." if differ else "All agree within their seeds."
    )
    return {"table": _table(head, rows), "found": found}


def _best_candidate(confirmation: pd.DataFrame) -> pd.Series[Any]:
    """The champion, or the candidate with the best mean if that is the baseline."""
    candidates = confirmation.iloc[1:].sort_values(["champion", "mean"], ascending=False)
    return candidates.iloc[0]


def _default(tables: Tables) -> dict[str, str]:
    table = tables["leaderboard"]
    states = ", ".join(f"{number} {state}" for state, number in table["state"].value_counts().items())
    parameters = [str(name) for name in table if "." in str(name)]
    columns = ["rank", "trial", *parameters, "validation_accuracy", "cpu_seconds", "epochs_run", "note"]
    first = table[columns].head(_ROWS)
    rows = [[leaderboard.cell(name, row[name]) for name in columns] for _, row in first.iterrows()]
    return {
        "trials": f"{len(table)} trials ({states})",
        "table": _table([leaderboard.heading_of(name) for name in columns], rows),
        "search": f"{leaderboard.best_against_baseline(table, ['validation_accuracy'])}.",
        "confirmed": "\n".join(f"- {line}" for line in verdicts.sentences(tables["confirmation"])),
    }


def _accuracies(table: pd.DataFrame, **where: object) -> pd.Series[float]:
    """The accuracies of the runs with these values, by seed."""
    for column, value in where.items():
        table = table[table[column] == value]
    return table.set_index("seed")["validation_accuracy"].sort_index()


def _compare(pairs: Sequence[tuple[pd.Series[float], pd.Series[float]]]) -> list[Comparison]:
    """Candidates, each against its baseline, seed by seed. Raises KeyError if a candidate lacks one of the seeds."""
    by_seed = [(candidate[baseline.index].tolist(), baseline.tolist()) for candidate, baseline in pairs]
    return statistics.compare_pairs(by_seed, _RESOLUTION)


_SUMMARY = ("n", "accuracy (%)", "sd", "95 % interval")
_TEST = ("p", "verdict")


def _summary(summary: Summary) -> list[str]:
    return [str(summary.n), _of(summary.mean), _of(summary.sd), f"{_of(summary.low)} to {_of(summary.high)}"]


def _compared(each: Comparison | None) -> list[str]:
    if each is None:
        return ["", "", ""]
    low, high = 100 * each.difference.low, 100 * each.difference.high
    return [f"{100 * each.difference.mean:+.2f} ({low:+.2f} to {high:+.2f})", f"{each.p_holm:.2g}", each.verdict]


def _mean(summary: Summary) -> str:
    return f"{_of(summary.mean)} % (n = {summary.n}, 95 % interval {_of(summary.low)} to {_of(summary.high)})"


def _points(difference: Summary) -> str:
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.mean:+.2f} points (n = {difference.n}, 95 % interval {low:+.2f} to {high:+.2f})"


def _of(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))
