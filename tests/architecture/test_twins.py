"""The twins are one text: same files, same definitions in the same order, same arguments, and mostly the same lines."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MLX, TORCH = ROOT / "mlx_gpt", ROOT / "torch_gpt"
FILES = sorted(path.name for path in TORCH.glob("*.py") if path.name != "__init__.py")

# What one framework calls so and the other so. Applied to the MLX text before lines are compared.
RENAMES = {
    "mx.array": "Tensor",
    "mx.concatenate": "torch.cat",
    "mx.repeat": "torch.repeat_interleave",
    "mx.Dtype": "torch.dtype",
    "mx.Device": "torch.device",
    "mx.float32": "torch.float32",
    "mx.bool_": "torch.bool",
    "mx.": "torch.",
    "__call__": "forward",
    "swapaxes": "transpose",
    "axis=": "dim=",
    ".astype(": ".to(",
    "mlx_gpt": "torch_gpt",
    "MLX": "PyTorch",
}
MODULES = ("model.py", "layers.py", "attention.py", "feed_forward.py", "experts.py", "adapters.py", "quantised.py")
"""Files of layers, whose call is `__call__` in MLX and `forward` in PyTorch."""

# Definitions that only one twin needs, and why.
ONE_SIDED = {
    "model.py": {
        "GPT.named_parameters",  # PyTorch's modules have it
        "GPT.state_dict",  # this too
    },
    "kernels.py": {  # what one is slow at, the other is not
        "_gelu",
        "_gelu_backward",
        "_gelu_forward",
        "_polynomial",
        "on_cpu",
        "is_plain",
        "_sigmoid",
        "_sigmoid_backward",
        "_sigmoid_forward",
        "_cross_entropy",
        "_cross_entropy_backward",
        "_sums",
        "_pieces",
        "_softmax",
        "_power",
        "_softmax_backward",
        "attention_by_rows",
        "_adding",
        "_quantised_product",
        "QuantisedProduct",
        "unpacked",
        "as_words",
        "Adding",
        "OneDNN",
        "product",
    },
    "device.py": {"limit_cache"},  # PyTorch gives back what it keeps before it fails
    "distributed.py": {"whole"},  # MLX has no tensors in parts
    "train.py": {"TrainStep.add_gradients"},  # PyTorch adds them up in the parameters
    "optim.py": {
        "AdamW",  # MLX's own rounds its bias corrections; PyTorch's is the reference
        "Muon",  # MLX keeps one state per parameter whatever updates it; PyTorch one optimiser per kind of update
        "owner_of",  # for the same reason
        "updated",  # this too
        "place_of",  # MLX keeps states in a tree
    },
}
# Folders that only one twin has, and why: the flat sum and the loop stay the twins' text.
ONE_SIDED_FOLDERS = {"torch_gpt/parallel"}  # DDP and FSDP2 are PyTorch's
# Arguments that only one twin needs, and why.
ONE_SIDED_ARGUMENTS = {
    "causal_attention": {"rate"},  # PyTorch's fused attention drops weights itself
    "attention_within": {"rate"},  # this too
    "clip_gradients": {"model", "gradients"},  # PyTorch keeps gradients in the parameters
    "TrainStep.clip_and_update": {"gradients"},  # for the same reason
    "Ranks.add_up": {"gradients"},  # for the same reason
    "Ranks.timed": {"device", "sent"},  # PyTorch waits for a device, MLX for what it is to compute
}


def definitions(path: Path) -> dict[str, list[str]]:
    """`Class.method -> argument names` of a file, in order."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = [a.arg for a in node.args.args + node.args.kwonlyargs]
        elif isinstance(node, ast.ClassDef):
            found[node.name] = []
            for item in node.body:
                if isinstance(item, ast.FunctionDef):
                    name = "forward" if item.name == "__call__" and path.name in MODULES else item.name
                    found[f"{node.name}.{name}"] = [a.arg for a in item.args.args + item.args.kwonlyargs]
    return found


def without_one_sided(file: str, found: dict[str, list[str]]) -> dict[str, list[str]]:
    names = ONE_SIDED.get(file, set())
    return {
        name: [argument for argument in arguments if argument not in ONE_SIDED_ARGUMENTS.get(name, set())]
        for name, arguments in found.items()
        if name not in names and name.partition(".")[0] not in names
    }


def shared_lines(*files: str) -> float:
    """Share of the longer twin's lines that are identical after the renames."""
    mlx = "".join((MLX / file).read_text(encoding="utf-8") for file in files)
    for ours, theirs in RENAMES.items():
        mlx = mlx.replace(ours, theirs)
    ours_lines = [line for line in mlx.splitlines() if line.strip()]
    torch = "".join((TORCH / file).read_text(encoding="utf-8") for file in files)
    for ours, theirs in {
        "torch.Tensor": "Tensor",
        "__call__": "forward",
        "mlx_gpt": "torch_gpt",
        "MLX": "PyTorch",
    }.items():
        torch = torch.replace(ours, theirs)
    torch_lines = [line for line in torch.splitlines() if line.strip()]
    matcher = difflib.SequenceMatcher(a=ours_lines, b=torch_lines, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) / max(len(ours_lines), len(torch_lines))


def test_same_files() -> None:
    assert sorted(path.name for path in MLX.glob("*.py") if path.name != "__init__.py") == FILES
    assert {"model.py", "optim.py", "train.py", "checkpoint.py", "sample.py", "device.py"} <= set(FILES)
    folders = {path.parent.relative_to(ROOT).as_posix() for twin in (MLX, TORCH) for path in twin.glob("*/*.py")}
    assert folders == ONE_SIDED_FOLDERS


@pytest.mark.parametrize("file", FILES)
def test_same_definitions_in_the_same_order_with_the_same_arguments(file: str) -> None:
    mlx = without_one_sided(file, definitions(MLX / file))
    torch = without_one_sided(file, definitions(TORCH / file))
    assert list(mlx.items()) == list(torch.items())


@pytest.mark.parametrize(
    ("files", "floor"),
    [(MODULES, 0.83), (("model.py",), 0.78), (("train.py",), 0.72), (("sample.py",), 0.7)],
    ids=["layers", "model", "train", "sample"],
)
def test_mostly_the_same_lines(files: tuple[str, ...], floor: float, capsys: pytest.CaptureFixture[str]) -> None:
    share = shared_lines(*files)
    with capsys.disabled():
        print(f"\n{', '.join(files)}: {share:.0%} of the lines are identical in both twins")
    assert share >= floor


def test_the_comparison_bites(tmp_path: Path) -> None:
    """A renamed argument, a moved definition and a missing one are each seen."""
    text = "def a(x): ...\ndef b(y): ...\n"
    (tmp_path / "one.py").write_text(text)
    for other in ("def a(z): ...\ndef b(y): ...\n", "def b(y): ...\ndef a(x): ...\n", "def a(x): ...\n"):
        (tmp_path / "two.py").write_text(other)
        assert list(definitions(tmp_path / "one.py").items()) != list(definitions(tmp_path / "two.py").items())
