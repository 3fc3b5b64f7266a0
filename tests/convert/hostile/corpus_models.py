"""Sound files that hold no sound model: nanoGPT arguments, tensors and optimiser state that cannot be what they say."""

# ruff: noqa: ARG005 (every edit is given what it edits, whether it looks or not)

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.convert.hostile.corpus import Case, Make, nanogpt_entries, nanogpt_file

WTE, HEAD, LN = "transformer.wte.weight", "lm_head.weight", "transformer.ln_f.weight"
C_FC = "transformer.h.1.mlp.c_fc.weight"
NAN = float("nan")


def _arguments(**values: Any) -> Make:
    return nanogpt_file(lambda entries: entries["model_args"].update(values))


def _model(change: Callable[[dict[str, Any]], Any]) -> Make:
    def edit(entries: dict[str, Any]) -> None:
        change(entries["model"])

    return nanogpt_file(edit)


def _tensor(name: str, change: Callable[[torch.Tensor], Any]) -> Make:
    return _model(lambda tensors: tensors.update({name: change(tensors[name])}))


def _prefixed_twice(tensors: dict[str, Any]) -> None:
    tensors[f"_orig_mod.{LN}"] = tensors[LN] + 1


def _named_by_a_number(tensors: dict[Any, Any]) -> None:
    tensors[7] = torch.ones(3)


def _replaced_by(tensors: dict[str, torch.Tensor]) -> Callable[[dict[str, Any]], None]:
    def change(old: dict[str, Any]) -> None:
        old.clear()
        old.update(tensors)

    return change


def _without_optimizer(entries: dict[str, Any]) -> None:
    entries["optimizer"] = None


def _quantised(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


ARGUMENTS = [
    Case("n_head that does not divide", _arguments(n_head=3), ("n_head", "3")),
    Case("n_layer of 10^9", _arguments(n_layer=10**9), ("n_layer|1000000000|h.2",)),
    Case("one layer too few", _arguments(n_layer=1), (r"n_layer|h\.1\.",)),
    Case("a negative vocabulary", _arguments(vocab_size=-65), ("vocab_size", "-65")),
    Case(
        "a vocabulary that is not the embedding's", _arguments(vocab_size=64), (r"vocab_size|wte\.weight", "64", "65")
    ),
    Case("a context that is not the embedding's", _arguments(block_size=32), (r"block_size|wpe\.weight", "32", "16")),
    Case("n_embd as text", _arguments(n_embd="eight"), ("n_embd", "eight")),
    Case("n_layer as a fraction", _arguments(n_layer=2.5), ("n_layer", r"2\.5")),
    Case("n_head as a tensor", _arguments(n_head=torch.ones(3)), ("n_head",)),
    Case("dropout of NaN", _arguments(dropout=NAN), ("dropout", "nan")),
    Case("bias without biases", _model(lambda t: t.pop("transformer.h.0.ln_1.bias")), (r"h\.0\.ln_1\.bias",)),
    Case("biases against the arguments", _arguments(bias=False), ("bias",)),
    Case("n_head is missing", nanogpt_file(lambda e: e["model_args"].pop("n_head") and None), ("n_head",)),
    Case("an argument of another nanoGPT", _arguments(use_rmsnorm=True), ("use_rmsnorm",)),
    Case("arguments that are a list", nanogpt_file(lambda e: e.update(model_args=[2, 2, 8])), ("model_args",)),
    Case("an iteration of NaN", nanogpt_file(lambda e: e.update(iter_num=NAN)), ("iter_num", "nan")),
    Case("a negative iteration", nanogpt_file(lambda e: e.update(iter_num=-3)), ("iter_num", "-3")),
    Case("an iteration as text", nanogpt_file(lambda e: e.update(iter_num="3")), ("iter_num",)),
    Case("no iteration", nanogpt_file(lambda e: e.pop("iter_num") and None), ("iter_num",)),
    Case("a best loss as text", nanogpt_file(lambda e: e.update(best_val_loss="low")), ("best_val_loss", "low")),
]

TENSORS = [
    Case("a tensor is missing", _model(lambda t: t.pop(C_FC)), (r"h\.1\.mlp\.c_fc\.weight",)),
    Case("a tensor too many", _model(lambda t: t.update({"adapter.weight": torch.ones(3)})), (r"adapter\.weight",)),
    Case("a misshapen tensor", _tensor(LN, lambda t: t[:7].clone()), (r"ln_f\.weight", "7", "8")),
    Case("a transposed tensor", _tensor(C_FC, lambda t: t.T), (r"h\.1\.mlp\.c_fc\.weight", "8, 32")),
    Case("one dimension too many", _tensor(LN, lambda t: t[None]), (r"ln_f\.weight", "1, 8")),
    Case("a number for a tensor", _tensor(LN, lambda t: 1.0), (r"ln_f\.weight", "float|list")),
    Case("a list for a tensor", _tensor(LN, lambda t: t.tolist()), (r"ln_f\.weight", "float|list")),
    Case("a name that is a number", _model(_named_by_a_number), ("7",)),
    Case("float64", _model(lambda t: t.update({n: x.double() for n, x in t.items()})), ("float64", "--dtype|cast")),
    Case("one tensor in float64", _tensor(LN, lambda t: t.double()), (r"ln_f\.weight", "float64")),
    Case("integers", _tensor(LN, lambda t: t.long()), (r"ln_f\.weight", "int64|I64")),
    Case("complex numbers", _tensor(LN, lambda t: t.to(torch.complex64)), ("complex",)),
    Case("truth values", _tensor(LN, lambda t: t > 0), (r"ln_f\.weight", "bool")),
    Case("quantised", _tensor(C_FC, _quantised), ("qtensor",)),
    Case("sparse", _tensor(C_FC, lambda t: t.to_sparse()), ("sparse|c_fc",)),
    Case("on the meta device", _tensor(C_FC, lambda t: t.to("meta")), ("meta|c_fc",)),
    Case("a shape of 2^40 over one element", _tensor(LN, lambda t: t[:1].expand(1 << 40)), (r"ln_f\.weight",)),
    Case("one name with two prefixes", _model(_prefixed_twice), (r"ln_f\.weight",)),
    Case("no tensors", _model(lambda t: t.clear()), ("tensor",)),
    Case(
        "another family's names",
        _model(_replaced_by({"layers.0.wq.weight": torch.ones(8, 8)})),
        (r"layers\.0\.wq\.weight|wte",),
    ),
]


def _optimizer(change: Callable[[dict[str, Any]], Any]) -> Make:
    def edit(entries: dict[str, Any]) -> None:
        change(entries["optimizer"])

    return nanogpt_file(edit)


def _state(index: int, **values: Any) -> Make:
    """One parameter's state with entries changed; index 0 is the token embedding, 5 is `h.0.mlp.c_proj.weight`."""
    return _optimizer(lambda o: o["state"][index].update(values))


def _groups_reversed(optimizer: dict[str, Any]) -> None:
    """Vectors before matrices, numbered as PyTorch would: a faithful state of another grouping."""
    decayed, others = optimizer["param_groups"]
    first, state = len(others["params"]), optimizer["state"]
    order = others["params"] + decayed["params"]
    optimizer["state"] = {new: state[old] for new, old in enumerate(order)}
    optimizer["param_groups"] = [
        {**others, "params": list(range(first))},
        {**decayed, "params": list(range(first, len(order)))},
    ]


def _one_group(optimizer: dict[str, Any]) -> None:
    decayed, others = optimizer["param_groups"]
    decayed["params"] = decayed["params"] + others["params"]
    optimizer["param_groups"] = [decayed]


def _sgd(entries: dict[str, Any]) -> None:
    parameter = torch.nn.Parameter(entries["model"][LN].clone())
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    entries["optimizer"] = optimizer.state_dict()


def _of(dtype: torch.dtype, shape: tuple[int, ...] = (65, 8)) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


MOMENT = r"exp_avg"
OPTIMIZER = [
    Case("a moment of another shape", _state(0, exp_avg=torch.ones(8, 65)), (MOMENT, "wte|lm_head", "8, 65")),
    Case("a moment as a vector", _state(5, exp_avg_sq=torch.ones(256)), ("exp_avg_sq", r"h\.0\.mlp\.c_proj", "256")),
    Case(
        "a moment is missing",
        _optimizer(lambda o: o["state"][5].pop("exp_avg_sq")),
        ("exp_avg_sq", r"h\.0\.mlp\.c_proj"),
    ),
    Case("a moment in float64", _state(0, exp_avg=_of(torch.float64)), (MOMENT, "wte|lm_head", "float64")),
    Case("a moment of integers", _state(0, exp_avg=_of(torch.int64)), (MOMENT, "wte|lm_head", "int64|I64")),
    Case("a moment that is a number", _state(0, exp_avg=0.5), (MOMENT, "wte|lm_head")),
    Case("a parameter without state", _optimizer(lambda o: o["state"].pop(5)), (r"h\.0\.mlp\.c_proj",)),
    Case("state of a parameter too many", _optimizer(lambda o: o["state"].update({99: o["state"][0]})), ("99",)),
    Case("a step of NaN", _state(0, step=torch.tensor(NAN)), ("step", "nan")),
    Case("an infinite step", _state(0, step=torch.tensor(float("inf"))), ("step", "inf")),
    Case("a negative step", _state(0, step=torch.tensor(-3.0)), ("step", "-3")),
    Case("half a step", _state(0, step=torch.tensor(2.5)), ("step", r"2\.5")),
    Case("a step as text", _state(0, step="three"), ("step", "three")),
    Case("a step per element", _state(0, step=torch.ones(65)), ("step",)),
    Case("no step", _optimizer(lambda o: o["state"][0].pop("step")), ("step|state", "wte|lm_head")),
    Case("steps that differ", _state(5, step=torch.tensor(2.0)), ("step", r"h\.0\.mlp\.c_proj", "2", "3")),
    Case("groups in the other order", _optimizer(_groups_reversed), ("group|exp_avg|optimi[sz]er",)),
    Case("one group for all", _optimizer(_one_group), ("group",)),
    Case(
        "one parameter in both groups", _optimizer(lambda o: o["param_groups"][1]["params"].append(0)), ("group|param",)
    ),
    Case("a group without its parameters", _optimizer(lambda o: o["param_groups"][0].pop("params")), ("params|group",)),
    Case("no groups", _optimizer(lambda o: o.pop("param_groups")), ("group",)),
    Case("no state", _optimizer(lambda o: o.pop("state")), ("state",)),
    Case("another optimiser", nanogpt_file(_sgd), ("optimi[sz]er|group|momentum",)),
    Case("AMSGrad", _optimizer(lambda o: [g.update(amsgrad=True) for g in o["param_groups"]]), ("amsgrad",)),
    Case("maximising", _optimizer(lambda o: [g.update(maximize=True) for g in o["param_groups"]]), ("maximize",)),
    Case("betas as text", _optimizer(lambda o: o["param_groups"][0].update(betas="no")), ("betas",)),
    Case("betas that differ", _optimizer(lambda o: o["param_groups"][0].update(betas=(0.5, 0.9))), ("betas",)),
    Case("a beta of 1", _optimizer(lambda o: [g.update(betas=(0.9, 1.0)) for g in o["param_groups"]]), ("beta",)),
    Case("decay on norms", _optimizer(lambda o: o["param_groups"][1].update(weight_decay=0.1)), ("weight_decay",)),
    Case("text for an optimiser", nanogpt_file(lambda e: e.update(optimizer="adamw")), ("optimizer",)),
]
OPTIMIZER = [Case(f"optimiser: {case.name}", case.make, case.says) for case in OPTIMIZER]


def _bare(folder: Path) -> Path:
    """Tensors and nothing else: the number of heads is nowhere in their shapes."""
    torch.save(nanogpt_entries()["model"], folder / "weights.pth")
    return folder / "weights.pth"


def _bare_of(change: Callable[[dict[str, Any]], Any]) -> Make:
    def make(folder: Path) -> Path:
        tensors = nanogpt_entries()["model"]
        change(tensors)
        torch.save(tensors, folder / "weights.pth")
        return folder / "weights.pth"

    return make


BARE = [
    Case("bare tensors without a configuration", _bare, ("n_head|head", "--preset|--config")),
    Case("bare tensors with a preset of another shape", _bare, ("gpt2|preset|shape",), flags=("--preset", "gpt2")),
    Case("bare tensors with an unknown preset", _bare, ("shakespear",), file=None, flags=("--preset", "shakespear")),
    Case("bare tensors of an unknown model", _bare_of(_replaced_by({"w": torch.ones(2)})), ("w|tensor",)),
]
