"""`evaluate --tasks`: EleutherAI's lm-eval, its tasks and its figures, asked of one of the twins."""

from __future__ import annotations

import logging
import math
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt_common.data.tokenizers import prefix_token
from gpt_common.errors import UserError, nearest
from gpt_common.judging.comparison import mean
from gpt_common.judging.measure import Asked
from gpt_common.judging.scoring import Scorer
from gpt_common.words import one_line, shortened

CORE = ("blimp", "lambada_openai", "hellaswag", "arc_easy", "piqa")
"""What small models can do something of: grammar, the last word of a story, how a scene goes on, simple knowledge."""
SEED = 1234
"""lm-eval's own, of what it draws: which examples stand before a question."""
RESAMPLES = 1000
"""For the errors of figures that are no means."""


@dataclass(frozen=True)
class Figure:
    """One metric of one task."""

    task: str
    metric: str
    value: float
    error: float
    """Standard error; NaN where lm-eval gives none."""
    count: int
    """Questions."""


@dataclass(frozen=True)
class TaskResult:
    """What lm-eval found."""

    figures: list[Figure]
    samples: dict[tuple[str, str], dict[int, float]]
    """By task and metric the value of each question, by its number."""
    ties: dict[str, int]
    """By task of choices: questions of which the two best choices were equally likely; lm-eval takes the first."""
    before: str
    """What stands before a text that has no context."""

    def lines(self) -> Iterator[str]:
        """A line for each figure."""
        yield f"  texts without a context stand behind {self.before}"
        yield f"  {'task':<32} {'metric':<18} {'value':>9} {'error':>8} {'of':>7}"
        for each in self.figures:
            error = f"{each.error:.4f}" if math.isfinite(each.error) else "-"
            name, metric = shortened(one_line(each.task), 32), shortened(one_line(each.metric), 18)
            yield f"  {name:<32} {metric:<18} {_in_nine(each.value):>9} {error:>8} {each.count:>7,}"
        for task, count in self.ties.items():
            if count:
                yield f"  {one_line(task)}: {count:,} ties between the best choices, of which the first was taken"

    def as_json(self) -> dict[str, Any]:
        """The same figures."""
        rows = [each.__dict__ | {"error": None if math.isnan(each.error) else each.error} for each in self.figures]
        return {"predicted_behind": self.before, "tasks": rows, "ties": self.ties}

    def against(self, other: TaskResult) -> Iterator[str]:
        """Figure by figure; with an interval where each question has a value of its own."""
        theirs = {(each.task, each.metric): each for each in other.figures}
        for each in self.figures:
            key = each.task, each.metric
            if key not in theirs:
                continue
            mine, beside = self.samples.get(key, {}), other.samples.get(key, {})
            line = f"  {one_line(each.task)}, {one_line(each.metric)}: {each.value - theirs[key].value:+.4f}"
            if mine and mine.keys() == beside.keys():
                differences = [mine[number] - beside[number] for number in mine]
                low, high = mean(differences).interval
                if not math.isnan(low):
                    won, lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
                    line += f" (95 %: {low:+.4f} to {high:+.4f}); {won} won, {lost} lost"
            yield line


def _in_nine(value: float) -> str:
    """A figure in a column: perplexities per word may have any size."""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


class TaskMeasure:
    """Asks tasks of lm-eval.

    Args:
        names: as `--tasks` says them.
        include_path: folder of more task files.
        limit: questions of each task; 0 means all.
        num_fewshot: solved examples before each question; None: as the task says.
    """

    name = "tasks"

    def __init__(self, names: str, include_path: Path | None, limit: int, num_fewshot: int | None) -> None:
        self.names = [name.strip() for name in names.split(",") if name.strip()]
        self.include_path, self.limit, self.num_fewshot = include_path, limit, num_fewshot
        self.loaded: dict[str, Any] | None = None

    @property
    def about(self) -> str:
        """The tasks as they were asked for."""
        return ", ".join(self.names)

    def prepare(self, asked: Asked) -> None:  # noqa: ARG002 (a task is asked of any model)
        """Find the tasks and their data sets.

        Raises:
            UserError: lm-eval is missing, no such task, a task that is no good, or its data cannot be had.
        """
        if self.loaded is not None:
            return
        if not self.names:
            raise UserError("--tasks names none: try --tasks core")
        with _quiet():
            manager = self._manager()
            wanted = [task for name in self.names for task in (CORE if name == "core" else (name,))]
            for name in wanted:
                if name not in manager.all_tasks:
                    _check_files(self.include_path)  # lm-eval passes over those that it cannot read
                    raise UserError(f"lm-eval has no task '{name}': {nearest(name, manager.all_tasks)}")
            self.loaded = {"tasks": {}, "groups": {}, "group_map": {}}
            for name in dict.fromkeys(wanted):
                for kind, found in _load(manager, name).items():
                    self.loaded[kind] |= found
        for task in self.loaded["tasks"].values():
            if self.num_fewshot is not None and task.get_config("num_fewshot") != 0:
                task.set_config(key="num_fewshot", value=self.num_fewshot)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=SEED)

    def _manager(self) -> Any:
        try:
            from lm_eval.tasks import TaskManager
        except ModuleNotFoundError as error:
            raise UserError(
                f"--tasks needs lm-eval ({error.name} is missing): pip install -c constraints.txt -e '.[evaluation]'"
            ) from None
        if self.include_path is not None:
            if not self.include_path.is_dir():
                raise UserError(f"--include-path {self.include_path} is no folder")
            own = TaskManager(include_path=str(self.include_path), include_defaults=False)
            if all(name in own.all_tasks for name in self.names):
                return own  # lm-eval's thousands need not be read
        return TaskManager(include_path=None if self.include_path is None else str(self.include_path))

    def ask(self, scorer: Scorer, asked: Asked) -> TaskResult:
        """Put all questions of all tasks."""
        from lm_eval.evaluator import evaluate

        from gpt_common.judging.harness import Harness

        tokenizer = asked.source.tokenizer
        random.seed(0)  # as lm-eval's own command does, for tasks that shuffle
        np.random.seed(SEED)
        assert self.loaded is not None
        with _quiet():
            found = evaluate(
                Harness(scorer, tokenizer),
                self.loaded,
                limit=self.limit or None,
                bootstrap_iters=RESAMPLES,
                log_samples=True,
            )
        before = tokenizer.decode([prefix_token(tokenizer)])
        return _result(found, self.loaded["tasks"], repr(before) if tokenizer.end_of_text is None else before)


def _check_files(folder: Path | None) -> None:
    """Refuse a folder with a task file that is no YAML."""
    import yaml  # type: ignore[import-untyped]  # lm-eval needs it

    for path in sorted(folder.rglob("*.yaml")) if folder is not None else ():
        try:
            for _ in yaml.parse(path.read_text(encoding="utf-8")):
                pass
        except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
            raise UserError(f"task file {path} cannot be read: {_short(error)}") from None


def _load(manager: Any, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = manager.load([name])
        return found
    except (ConnectionError, FileNotFoundError) as error:
        raise UserError(
            f"the data of task '{name}' cannot be had ({_short(error)}): it is fetched once where there is a network, "
            "and kept in the cache of the `datasets` library, which can be copied here"
        ) from None
    except Exception as error:  # a task file may be wrong in any way, and is code in part
        raise UserError(f"task '{name}' cannot be loaded: {type(error).__name__}: {_short(error)}") from None


def _short(error: Exception) -> str:
    return one_line(" ".join(str(error).split())[:200])


def _result(found: dict[str, Any], tasks: dict[str, Any], before: str) -> TaskResult:
    figures, samples, ties = list[Figure](), dict[tuple[str, str], dict[int, float]](), dict[str, int]()
    counts = {name: each["effective"] for name, each in found["n-samples"].items()}
    for task, metrics in {**found.get("groups", {}), **found["results"]}.items():
        for key, value in metrics.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{chosen}")
            count = counts.get(task) or sum(
                counts.get(name, 0) for name in _leaves(task, found.get("group_subtasks", {}))
            )
            error = float(error) if isinstance(error, int | float) else math.nan
            figures.append(
                Figure(task, metric if chosen == "none" else f"{metric},{chosen}", float(value), error, count)
            )
    for task, each in found["samples"].items():
        for sample in each:
            for metric in sample["metrics"]:
                if isinstance(value := sample.get(metric), int | float):
                    samples.setdefault((task, metric), {})[int(sample["doc_id"])] = float(value)
        if tasks[task].OUTPUT_TYPE == "multiple_choice":
            ties[task] = sum(_is_tie(sample["filtered_resps"]) for sample in each)
    return TaskResult(figures, samples, ties, before)


def _leaves(group: str, children: dict[str, list[str]]) -> Iterator[str]:
    for name in children.get(group, []):
        yield from _leaves(name, children) if children.get(name) else [name]


def _is_tie(answers: list[Any]) -> bool:
    nats = sorted((float(answer[0]) for answer in answers), reverse=True)
    return len(nats) > 1 and nats[0] == nats[1]


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval and what it stands on say much that is no concern of who asks, and draw bars."""
    from tqdm import tqdm  # lm-eval needs it

    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets", "huggingface_hub", "fsspec")]
    levels, begin_bar = [logger.level for logger in loggers], tqdm.__init__

    def no_bar(bar: Any, *args: Any, **named: Any) -> None:
        begin_bar(bar, *args, **{**named, "disable": True})

    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    tqdm.__init__ = no_bar  # one of our own tells how far it is
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tqdm.__init__ = begin_bar
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
