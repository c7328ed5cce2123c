"""The search space: the keys of a run's config that a study varies, and their values."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from digitcnn.config import RunConfig, nearest_key
from digitcnn.errors import ConfigError
from digitcnn.formatting import named_null

Scalar = bool | int | float | str | None
_SEARCHED_GROUPS = ("model", "training", "augmentation")
# Beyond this many corners of the space, only the all-low and all-high ones are tried: a check takes 0.1 ms each.
_MAX_CORNERS = 4096
_MAX_GRID_POINTS = 100_000
_MAX_STEPS = 10_000_000_000


@dataclass(frozen=True)
class Choices:
    """A categorical parameter: one of some values, in the order given."""

    values: tuple[Scalar, ...]

    @property
    def extremes(self) -> tuple[Scalar, ...]:
        """All values: none of them is between the others."""
        return self.values

    @property
    def size(self) -> float:
        """The number of values."""
        return len(self.values)

    @property
    def distribution(self) -> CategoricalDistribution:
        """The parameter as Optuna draws it."""
        return CategoricalDistribution(self.values)

    def parse(self, text: str) -> Scalar:
        """Return the choice that is recorded as a text, or the text itself."""
        return next((value for value in self.values if str(value) == text), text)

    def contains(self, value: Scalar) -> bool:
        """Return True for one of the choices."""
        return value in self.values

    def __str__(self) -> str:
        return "one of " + ", ".join(str(named_null(value)) for value in self.values)


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included, in steps of `step` or evenly on a logarithmic scale."""

    low: int | float
    high: int | float
    step: int | float | None
    log: bool

    @property
    def steps(self) -> int | None:
        """The number of steps from the lowest to the highest value; None for a continuous range."""
        # 1e-9: a float step such as 0.1 must reach its end in spite of rounding.
        return None if self.step is None else math.floor((self.high - self.low) / self.step + 1e-9)

    def value(self, step: int) -> int | float:
        """Return the value after some steps."""
        return self.low + step * (self.step or 0)

    @property
    def extremes(self) -> tuple[int | float, int | float]:
        """The lowest and the highest value: a range need not end on a step."""
        return (self.low, self.high if self.steps is None else self.value(self.steps))

    @property
    def values(self) -> tuple[int | float, ...]:
        """Every value of a range with steps, in ascending order. Raises ValueError for a continuous one."""
        if self.steps is None:
            raise ValueError("a continuous range has no steps")
        return tuple(self.value(step) for step in range(self.steps + 1))

    @property
    def size(self) -> float:
        """The number of values, infinite for a continuous range."""
        return math.inf if self.steps is None else self.steps + 1

    @property
    def distribution(self) -> IntDistribution | FloatDistribution:
        """The parameter as Optuna draws it."""
        low, high = self.extremes
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=self.log, step=int(self.step or 1))
        return FloatDistribution(low, high, log=self.log, step=self.step)

    def parse(self, text: str) -> Scalar:
        """Return the number that is recorded as a text, or the text itself."""
        try:
            return type(self.low)(text)
        except ValueError:
            return text

    def contains(self, value: Scalar) -> bool:
        """Return True for a value that the range reaches."""
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        return self.step is None or math.isclose(value, self.value(round((value - self.low) / self.step)))

    def __str__(self) -> str:
        step = f", step {self.step}" if self.step not in (None, 1) else ""
        return f"{self.low} to {self.high}{step}{', logarithmic' if self.log else ''}"


Space = dict[str, Choices | Range]


def parse_space(tree: Mapping[str, Any], baseline: RunConfig) -> Space:
    """Return the space that a `study.space` tree describes, by dotted name, in the tree's order.

    A value is `{choices: [..]}`, or a list as its short form; `{low, high, step, log}`; or null for a key that is
    not varied after all. The baseline's own value joins the choices: it is trial 0, so it is part of the study.
    Raises ConfigError for unknown keys, for empty or inverted ranges and for values that the key does not allow.
    """
    known = {name: value for name, value in baseline.parameters().items() if name.partition(".")[0] in _SEARCHED_GROUPS}
    space: Space = {}
    for name, description in _leaves(tree):
        if name == "backend":
            raise ConfigError("study.space.backend: cannot be searched, as a process has one; give each its own study")
        if name == "training.threads":
            raise ConfigError(
                f"study.space.{name}: cannot be searched, as a worker keeps its own; give each its own study"
            )
        if name not in known:
            raise ConfigError(f"study.space.{name}: unknown key; {nearest_key(name, list(known))}")
        if description is not None:
            space[name] = _parameter(name, description, known[name])
    if not space:
        raise ConfigError("study.space: is empty; must vary at least one key")
    _check_values(space, baseline)
    return space


def grid_points(space: Space) -> list[dict[str, Scalar]]:
    """Return every point of a finite space. Raises ConfigError if the space is continuous or too large to walk."""
    for name, parameter in space.items():
        if math.isinf(parameter.size):
            raise ConfigError(
                f"study.sampler=grid: study.space.{name} is continuous; give it a step or choices, or another sampler"
            )
    if space_size(space) > _MAX_GRID_POINTS:
        raise ConfigError(
            f"study.sampler=grid: the space has {space_size(space):,.0f} points; at most {_MAX_GRID_POINTS:,}"
        )
    axes = [parameter.values for parameter in space.values()]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*axes)]


def space_size(space: Space) -> float:
    """Return the number of points, infinite if any parameter is continuous."""
    return math.prod(parameter.size for parameter in space.values())


def space_corners(space: Space) -> list[dict[str, Scalar]]:
    """Return the points with every parameter at an extreme; of a wide space only the all-low and all-high ones."""
    extremes = [parameter.extremes for parameter in space.values()]
    if math.prod(len(values) for values in extremes) > _MAX_CORNERS:
        points = [tuple(values[0] for values in extremes), tuple(values[-1] for values in extremes)]
    else:
        points = list(itertools.product(*extremes))
    return [dict(zip(space, point, strict=True)) for point in points]


def draw_points(space: Space, number: int) -> list[dict[str, Scalar]]:
    """Return random points, the same ones every time."""
    drawn, parameters = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)), distributions(space)
    return [drawn.ask(parameters).params for _ in range(number)]


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return the parameters as Optuna draws them, for `Study.ask`."""
    return {name: parameter.distribution for name, parameter in space.items()}


def describe_space(space: Space) -> dict[str, Any]:
    """Return the space as plain values, which identify it in a study's record."""
    return {
        name: list(parameter.values) if isinstance(parameter, Choices) else vars(parameter)
        for name, parameter in space.items()
    }


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and not set(value) & {"choices", "low", "high", "step", "log"}:
            leaves += _leaves(value, f"{name}.")
        else:
            leaves.append((name, value))
    return leaves


def _parameter(name: str, description: Any, baseline_value: Any) -> Choices | Range:
    key = f"study.space.{name}"
    if isinstance(description, list):
        description = {"choices": description}
    if not isinstance(description, Mapping):
        raise ConfigError(f"{key}={description}: must be a list of choices, or {{low, high, step, log}}")
    unknown = sorted(set(description) - {"choices", "low", "high", "step", "log"})
    if unknown:
        raise ConfigError(f"{key}.{unknown[0]}: unknown key; must be one of choices, low, high, step, log")
    if not description:
        raise ConfigError(f"{key}={{}}: is empty; give choices or low and high")
    given = {part: value for part, value in description.items() if value is not None}
    if "choices" in given:
        if len(given) > 1:
            raise ConfigError(f"{key}: has both choices and a range; write {key}=[..] to replace the range")
        return _choices(key, given["choices"], baseline_value)
    return _range(key, given, baseline_value)


def _choices(key: str, values: Any, baseline_value: Any) -> Choices:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{key}.choices={values}: must be a list of at least one value")
    for value in values:
        if not isinstance(value, Scalar):
            raise ConfigError(f"{key}.choices={values}: must hold numbers, words, null or true and false")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}.choices={values}: must be finite")
    if len(set(values)) != len(values):
        raise ConfigError(f"{key}.choices={values}: must name each value once")
    if isinstance(baseline_value, float):
        # A run's config holds 0 as 0.0: as two texts they would be two trials.
        values = [float(value) if _is_number(value) else value for value in values]
    if isinstance(baseline_value, Scalar) and baseline_value not in values:
        values = [*values, baseline_value]
        if all(_is_number(value) for value in values):
            values.sort()
    return Choices(tuple(values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range(key: str, given: Mapping[str, Any], baseline_value: Any) -> Range:
    for part in ("low", "high"):
        if part not in given:
            raise ConfigError(f"{key}.{part}: missing; a range needs low and high")
    for part in ("low", "high", "step"):
        value = given.get(part, 1)
        if not _is_number(value) or not math.isfinite(value):
            raise ConfigError(f"{key}.{part}={value}: must be a finite number")
    low, high, step, log = given["low"], given["high"], given.get("step"), given.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{key}.log={log}: must be true or false")
    if low > high:
        raise ConfigError(f"{key}: is empty: low={low} is above high={high}")
    if not _is_number(baseline_value):
        raise ConfigError(f"{key}: is not a number in the baseline ({named_null(baseline_value)}); give choices")
    if step is not None and (step <= 0 or log):
        raise ConfigError(f"{key}.step={step}: must be above 0, and not be given with log")
    if step is not None and (high - low) / step > _MAX_STEPS:
        raise ConfigError(f"{key}.step={step}: gives more than {_MAX_STEPS:,} values")
    if log and low <= 0:
        raise ConfigError(f"{key}.low={low}: must be above 0 on a logarithmic scale")
    if all(isinstance(value, int) for value in (low, high)) and isinstance(baseline_value, int):
        if step is not None and not isinstance(step, int):
            raise ConfigError(f"{key}.step={step}: must be a whole number between whole numbers")
        return Range(low, high, None if log else step or 1, log)
    if isinstance(baseline_value, int):
        raise ConfigError(f"{key}: low={low} and high={high} must be whole numbers")
    return Range(float(low), float(high), None if step is None else float(step), log)


def _check_values(space: Space, baseline: RunConfig) -> None:
    """Raise ConfigError unless the config allows every extreme value under its key."""
    for name, parameter in space.items():
        for value in parameter.extremes:
            try:
                baseline.replace({name: value})
            except ConfigError as error:
                raise ConfigError(f"study.space.{error}") from None
