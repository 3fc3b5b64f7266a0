"""Kind 5: what was saved, and what is made of it."""

from __future__ import annotations

from convert.parity.mutants.planted import Edit
from tests.plants.plant import Plant, both

CHECKPOINT = "gpt_common/training/checkpoint.py"

PLANTS = (
    Plant(
        "best always moves with latest",
        5,
        (Edit(CHECKPOINT, "write_checkpoint", "if best:", "if best or True:"),),
        says="best is|pointer",
        told=True,
    ),
    Plant(
        "best never moves again",
        5,
        (Edit(CHECKPOINT, "write_checkpoint", "if best:", 'if best and not (folder / "best").exists():'),),
        says="best is|pointer",
    ),
    Plant(
        "latest is written once",
        5,
        (
            Edit(
                CHECKPOINT,
                "write_checkpoint",
                'write_atomically(folder / "latest", final.name + "\\n")',
                '(folder / "latest").exists() or write_atomically(folder / "latest", final.name + "\\n")',
            ),
        ),
        says="latest is|pointer",
    ),
    Plant(
        "the best checkpoint is retired with the old ones",
        5,
        (Edit(CHECKPOINT, "_retire", 'for name in ("best", "latest")', 'for name in ("latest",)'),),
        says="best is|pointer",
    ),
    Plant(
        "the weights are saved, and not their mean",
        5,
        both("save_tensors", "checkpoint.py", ("saved = average.model", "saved = model")),
        says="loaded again",
        asks="mean of weights",
    ),
    Plant(
        "weights are saved in half precision",
        5,
        both(
            "save_tensors",
            "checkpoint.py",
            ("{name: p.detach().contiguous() for", "{name: p.detach().half().float().contiguous() for"),
            (
                "mx.save_safetensors(str(folder / MODEL_FILE), tensors)",
                "mx.save_safetensors(str(folder / MODEL_FILE), "
                "{name: value.astype(mx.float16).astype(mx.float32) for name, value in tensors.items()})",
            ),
        ),
        says="loaded again|as they were saved",
    ),
    Plant(
        "moments change places when they are saved",
        5,
        (
            Edit(
                "torch_gpt/optim.py",
                "optimizer_tensors",
                "state[moment] if state",
                'state[{"exp_avg": "exp_avg_sq", "exp_avg_sq": "exp_avg"}.get(moment, moment)] if state',
            ),
            Edit(
                "mlx_gpt/optim.py",
                "optimizer_tensors",
                '": state[f"{name}.{key}"]',
                '": state[f"{name}." + {"m": "v", "v": "m"}.get(key, key)]',
            ),
        ),
        says="moments",
        tests=("tests/gpt_common/training/test_runs.py", "-k", "resumed_weights"),
    ),
    Plant(
        "moments are not taken up on resume",
        5,
        both(
            "load_checkpoint",
            "checkpoint.py",
            ("load_optimizer_tensors(model, optimizer, state, manifest.step)", "pass"),
        ),
        says="moments|optimiser",
        asks="resume",
        tests=("tests/gpt_common/training/test_runs.py", "-k", "resumed_weights"),
    ),
    Plant(
        "a resumed optimiser counts its steps from 0",
        5,
        (
            Edit(  # MLX is told the number before every step
                "torch_gpt/checkpoint.py",
                "load_checkpoint",
                "load_optimizer_tensors(model, optimizer, state, manifest.step)",
                "load_optimizer_tensors(model, optimizer, state, 0)",
            ),
        ),
        says="bias correction|AdamW",
        asks="resume",
        tests=("tests/gpt_common/training/test_runs.py", "-k", "resumed_weights"),
    ),
    Plant(
        "the stored loss is the best one",
        5,
        (
            Edit(
                "gpt_common/training/run.py",
                "Run.save",
                "self.val_loss if self.evaluated_step == step else None",
                "self.best_val_loss",
            ),
        ),
        says="loaded again",
    ),
    Plant(
        "a resumed run begins a step early",
        5,
        (
            Edit(
                "gpt_common/training/opening.py",
                "open_run",
                "= manifest.step, manifest",
                "= manifest.step - 1, manifest",
            ),
        ),
        asks="resume",
        says="step",
        tests=("tests/gpt_common/training/test_runs.py", "-k", "resumed_weights"),
    ),
)
