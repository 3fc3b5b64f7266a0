"""What `--init-from` takes if nothing else is said: settings that do not undo what the base has learnt."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt_common.config import PRESETS_FOLDER, OptimConfig, is_for_fine_tuning, load_toml, preset_names
from gpt_common.errors import UserError
from gpt_common.training.command_line import parse_training
from tests.twins import tiny, train


@pytest.fixture(scope="module")
def base(stories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("base") / "run"
    train("torch_gpt", *tiny(stories_dir, "--out", str(run), "--max-steps", "6", "--learning-rate", "1e-2"))
    return run


def parsed(*argv: str | Path) -> tuple[float, float, int]:
    command, why = parse_training([str(word) for word in argv], prog="x", has_gpu=False)
    assert why
    optim = command.run.optim
    return optim.learning_rate, optim.min_lr, optim.warmup_steps


def test_the_rate_is_a_tenth_of_the_bases(base: Path) -> None:
    rate, least, warmup = parsed("--init-from", base)
    assert rate == pytest.approx(1e-3)
    assert least <= 1e-4
    assert warmup <= 10


def test_a_preset_does_not_bring_its_pre_training_rate_back(base: Path) -> None:
    assert parsed("--init-from", base, "--preset", "stories-cpu")[0] == pytest.approx(1e-3)
    # A preset for pre-training at a lower rate than the base's is the more careful of the two.
    assert parsed("--init-from", base, "--preset", "gpt2")[0] == pytest.approx(6e-5)
    # A preset for fine-tuning means what it says; beside a frozen base the rate is that of an adapter.
    assert parsed("--init-from", base, "--preset", "stories-qa")[:2] == pytest.approx((2e-3, 2e-5))
    adapted = parsed("--init-from", base, "--preset", "stories-qa", "--adapter", "lora")
    assert adapted[0] == pytest.approx(min(2e-3, parsed("--init-from", base, "--adapter", "lora")[0]))


def test_what_is_said_counts(base: Path, tmp_path: Path) -> None:
    assert parsed("--init-from", base, "--learning-rate", "5e-3")[0] == 5e-3
    (tmp_path / "mine.toml").write_text("[optim]\nlearning_rate = 4e-3\n")
    assert parsed("--init-from", base, "--config", tmp_path / "mine.toml")[0] == 4e-3


def test_the_rest_is_the_bases_and_this_machines(base: Path) -> None:
    command, _ = parse_training(["--init-from", str(base), "--dropout", "0.1"], prog="x", has_gpu=True)
    assert command.preset is None
    assert (command.run.model.n_embd, command.run.train.batch_size, command.run.data.dataset) == (32, 4, "stories")
    assert command.run.model.dropout == 0.1
    assert command.run.train.device == "auto"


def test_an_adapter_has_the_bases_rate_whoever_asks_for_it(base: Path, tmp_path: Path) -> None:
    (tmp_path / "lora.toml").write_text('[adapter]\nadapter = "lora"\n')
    by_flag, by_file = ("--adapter", "lora"), ("--config", tmp_path / "lora.toml")
    assert parsed("--init-from", base, *by_file)[0] == min(
        parsed("--init-from", base, *by_flag)[0], OptimConfig().learning_rate
    )


def test_a_preset_for_fine_tuning_says_so_itself() -> None:
    assert [name for name in preset_names() if is_for_fine_tuning(name)] == ["stories-qa"]
    load_toml(PRESETS_FOLDER / "stories-qa.toml")  # as a file it is read too
    with pytest.raises(UserError, match="no preset"):
        is_for_fine_tuning("stories-aq")


def test_steps_that_are_asked_for_are_not_bounded_by_the_bases_time(stories_dir: Path, tmp_path: Path) -> None:
    timed = tmp_path / "timed"
    train("torch_gpt", *tiny(stories_dir, "--out", str(timed), "--max-minutes", "0.01"))

    def limits(*more: str) -> tuple[float, int]:
        command, _ = parse_training(["--init-from", str(timed), *more], prog="train", has_gpu=False)
        return command.run.train.max_minutes, command.run.train.max_steps

    assert limits("--max-steps", "7") == (0, 7)
    assert limits("--max-steps", "7", "--max-minutes", "2") == (2, 7)
    assert limits()[0] == 0.01


def test_help_names_a_model_of_the_hub_and_fetches_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_training(["--init-from", "hf:someone/not-here", "--help"], prog="x", has_gpu=False)
    assert stop.value.code in (0, None)
    assert "--init-from" in capsys.readouterr().out
