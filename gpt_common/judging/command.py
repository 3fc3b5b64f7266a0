"""What `evaluate` is told, and how it goes about it: a model, or two of them, and everything that is asked of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from gpt_common.cli import parse
from gpt_common.errors import UserError
from gpt_common.files import cannot_write, write_atomically
from gpt_common.judging.dataset_measures import DatasetMeasure
from gpt_common.judging.extraction_measure import ExtractionMeasure
from gpt_common.judging.measure import Asked, Measure, Result
from gpt_common.judging.memorisation import MemorisationMeasure
from gpt_common.judging.probes.measure import ProbesMeasure
from gpt_common.judging.scoring import Scorer
from gpt_common.judging.tasks import TaskMeasure
from gpt_common.judging.text_measure import TextMeasure
from gpt_common.training.folder import named_or_newest
from gpt_common.training.report.page import REPORT, write_report
from gpt_common.training.report.past import read_run
from gpt_common.training.source import Source, open_source
from gpt_common.words import one_line, say


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Judge a trained model. CKPT is a checkpoint or a run (then its best). Without --text or --tasks: by the dataset
    that it was trained on, its questions if it has any, else its validation text."""

    examples: ClassVar[tuple[str, ...]] = (
        "--text mine.txt --against runs/other",
        "--tasks core",
        "--dataset stories-qa --questions 1000",
    )
    text: tuple[Path, ...] | None = None
    """UTF-8 files: loss per token, bits per byte and per character of all of each."""
    stride: int = 0
    """Tokens by which windows over --text move on: fewer see more, and take longer; 0 means half a block."""
    separator: str | None = None
    """What stands between two documents of --text: <|endoftext|> if not given, `none`, or any text."""
    tasks: str | None = None
    """Tasks of lm-eval (extra `evaluation`), as a,b; `core`: blimp, lambada_openai, hellaswag, arc_easy, piqa."""
    include_path: Path | None = None
    """Folder of your own task files (YAML), as lm-eval takes it."""
    limit: int = 0
    """Of each task so many questions only; 0 means all."""
    num_fewshot: int | None = None
    """Solved examples before each question of a task, if not as many as the task says."""
    probes: bool = False
    """Ask about the world of `stories`: facts that must be repeated, minimal pairs, calibration against the truth."""
    memorisation: bool = False
    """Look for validation text in the training text, and for training text in what the model writes."""
    extract: Path | None = None
    """JSON lines with prompt and answer (JSON): what is right, field by field, free and held to --json-schema."""
    json_schema: Path | None = None
    """Of the answers of --extract (extra `structured`)."""
    shots: str = ""
    """Of --extract so many solved examples before each question: 0,1,4,16 if not given."""
    dataset: str | None = None
    """A prepared dataset to judge by, if not the run's own."""
    data_dir: Path | None = None
    """Folder of prepared corpora, if not the run's own."""
    questions: int = 500
    """Of a dataset of conversations, how many; of stories-qa also as many in new phrasings."""
    against: Path | None = None
    """Another checkpoint or run, asked the same: the difference with its interval."""
    json: Path | None = None
    """Write all figures to this file as well."""
    batch_size: int = 16
    """Rows at once, for the loss of a dataset."""
    latest: bool = False
    """Of a run folder, take the latest checkpoint and not the best."""
    device: Literal["auto", "cpu", "gpu", "mps", "cuda"] = "auto"
    """Where to compute."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; auto: bfloat16 on MLX GPU and CUDA, float32 on MPS and CPU."""

    def __post_init__(self) -> None:
        for name in ("questions", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if (self.extract is None) != (self.json_schema is None):
            raise UserError("--extract and --json-schema belong together: texts, and the schema of their answers")
        if self.shots and self.extract is None:
            raise UserError("--shots is for --extract; the tasks of lm-eval have --num-fewshot")
        if self.text == ():
            raise UserError("--text names no file")
        for asked, names in (("text", ("stride", "separator")), ("tasks", ("include_path", "limit", "num_fewshot"))):
            for name in names:
                if getattr(self, asked) is None and getattr(self, name) not in (None, 0):
                    raise UserError(f"--{name.replace('_', '-')} is for --{asked}, which was not asked for")
        # Hours may lie between this and the writing.
        if self.json is not None and (self.json.is_dir() or not self.json.absolute().parent.is_dir()):
            what = "is a folder" if self.json.is_dir() else "lies in a folder that does not exist"
            raise UserError(f"--json {self.json} {what}: name a file")
        for name in ("stride", "limit", "num_fewshot"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must not be negative")

    def measures(self) -> list[Measure]:
        """What is asked."""
        found: list[Measure] = []
        if self.text is not None:
            found.append(TextMeasure(self.text, self.stride, self.separator))
        if self.tasks is not None:
            found.append(TaskMeasure(self.tasks, self.include_path, self.limit, self.num_fewshot))
        if self.extract is not None and self.json_schema is not None:
            found.append(ExtractionMeasure(self.extract, self.json_schema, self.shots))
        if self.probes:
            found.append(ProbesMeasure())
        if self.memorisation:
            found.append(MemorisationMeasure(self.dataset, self.data_dir))
        if not found or (self.dataset is not None and not self.memorisation):
            found.append(DatasetMeasure(self.dataset, self.data_dir, self.questions, self.batch_size))
        return found


def parse_evaluation(argv: Sequence[str], *, prog: str) -> tuple[Path, EvaluateCommand]:
    """The evaluation command line: the checkpoint or run folder, if not the newest run is meant, then flags."""
    named = [word for word in argv[:1] if not word.startswith("-")]
    command = parse(EvaluateCommand, argv[len(named) :], prog=f"{prog} CKPT")
    return named_or_newest(named, "evaluating")[0], command


def evaluate(path: Path, command: EvaluateCommand, open_model: Callable[[Source], Scorer]) -> None:
    """Ask everything of the model, and of the one beside it, and print and keep what was found.

    Args:
        open_model: loads a model in one of the twins.

    Raises:
        UserError: no such checkpoint, or something that cannot be asked of it: said before any model is loaded.
    """
    measures = command.measures()
    models = [Asked(open_source(path, latest=command.latest), command.dtype)]
    if command.against is not None:
        models.append(Asked(open_source(command.against, latest=command.latest), command.dtype))
    for asked in models:
        for measure in measures:
            measure.prepare(asked)
    found: list[dict[str, Result]] = []
    for asked in models:
        scorer = open_model(asked.source)
        found.append({})
        for measure in measures:
            say(f"{asked.source.checkpoint} on {measure.about}", flush=True)
            result = found[-1][measure.name] = measure.ask(scorer, asked)
            for line in result.lines():
                say(line, flush=True)
            _keep(asked, measure.name, result)
        if command.probes and asked.run is not None and (asked.run / REPORT).exists():
            _draw_anew(asked.run)
        del scorer  # one model in memory at a time
    if len(found) > 1:
        say(f"{models[0].source.checkpoint}\nagainst {models[1].source.checkpoint}")
        for name, result in found[0].items():
            for line in result.against(found[1][name]):
                say(line)
    if command.json is not None:
        figures = {
            str(asked.source.checkpoint): _as_json(results) for asked, results in zip(models, found, strict=True)
        }
        try:
            write_atomically(command.json, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise cannot_write(command.json, error) from None


def _as_json(results: dict[str, Result]) -> dict[str, Any]:
    return {name: result.as_json() for name, result in results.items()}


def _keep(asked: Asked, name: str, result: Result) -> None:
    """Leave a result in the run's folder, for its page and for whoever looks later."""
    if asked.run is None:
        return
    path = asked.run / "evaluation" / f"{name}.json"
    figures = {"checkpoint": asked.source.checkpoint.name, "dtype": asked.dtype, **result.as_json()}
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    except (OSError, UserError) as error:
        reason = str(cannot_write(path, error)) if isinstance(error, OSError) else str(error)
        print(f"note: not kept: {one_line(reason)}", file=sys.stderr)


def _draw_anew(run: Path) -> None:
    """A run's page shows what probes found."""
    try:
        say(f"on the run's page, {write_report(read_run(run))}")
    except UserError as error:
        print(f"note: the run's page is as it was: {one_line(str(error))}", file=sys.stderr)
