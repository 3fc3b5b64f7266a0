"""Whether what a checkpoint holds is what its configuration asks for; whatever is not, by name."""

from __future__ import annotations

import dataclasses

from convert.contents import OPTIMIZERS, Contents, shape_of_model
from convert.storage.tensors import DTYPE_NAMES, WEIGHT_DTYPES
from gpt_common.config import ModelConfig, RunConfig
from gpt_common.errors import UserError
from gpt_common.network.parameters import optimizer_shapes, tensor_shapes, trained_shapes


def problems(contents: Contents) -> list[str]:
    """Every way in which the tensors are not those of the configuration: missing, extra, misshapen, wrong dtype."""
    if contents.config is None:
        return []
    model, own = contents.config.model, contents.own_name
    if not contents.tensors and not contents.unknown:
        return ["it holds no tensors"]
    if contents.base is not None:
        return _adapter_problems(contents, contents.config)
    if model.vocab_size < 1:
        return [f"{contents.described_in} says vocab_size {model.vocab_size}"]
    found = [f"unexpected tensor {name}: it does not belong to {contents.family}" for name in contents.unknown]
    layers = shape_of_model(contents.tensors).get("n_layer", 0)
    said = f"{contents.described_in} asks for {model.n_layer} layers"
    # The number comes from a file: what is missing is said before anything is computed for each of 10^9 layers.
    n_layer = min(model.n_layer, layers + 1)
    model = dataclasses.replace(model, n_layer=n_layer, n_dense_layer=min(model.n_dense_layer, n_layer))
    shapes = tensor_shapes(model)
    for name, shape in shapes.items():
        if name not in contents.tensors:
            found.append(f"tensor {own(name)} is missing" + (f" ({said})" if layers < model.n_layer else ""))
        elif contents.tensors[name].shape != shape:
            has = list(contents.tensors[name].shape)
            found.append(f"tensor {own(name)} has shape {has}, {contents.described_in} asks for {list(shape)}")
        elif contents.tensors[name].dtype not in (*WEIGHT_DTYPES, "F64"):
            dtype = DTYPE_NAMES[contents.tensors[name].dtype]
            found.append(f"tensor {own(name)} is {dtype}, and weights are float32, bfloat16 or float16")
    extra = [name for name in contents.tensors if name not in shapes]
    biases = f", bias {model.bias}, attention_bias {model.attention_bias}"
    found += [f"unexpected tensor {own(name)} ({said}{biases if name.endswith('.bias') else ''})" for name in extra]
    return found + _moment_problems(contents, model)


def _adapter_problems(contents: Contents, config: RunConfig) -> list[str]:
    """In which ways tensors are not those of an adapter as it is configured."""
    try:
        shapes = trained_shapes(config.model, config.adapter)
    except UserError as error:
        return [str(error)]
    found = [f"tensor {name} is missing" for name in shapes if name not in contents.tensors]
    for name, tensor in contents.tensors.items():
        if name not in shapes:
            found.append(f"unexpected tensor {name}: it belongs to no adapter of this model")
        elif tensor.shape != shapes[name]:
            asked = f"{contents.described_in} asks for {list(shapes[name])}"
            found.append(f"tensor {name} has shape {list(tensor.shape)}, {asked}")
    return found


def _moment_problems(contents: Contents, model: ModelConfig) -> list[str]:
    if not contents.moments or contents.config is None:
        return []
    optim = contents.config.optim
    expected = optimizer_shapes(model, optim)
    kind = OPTIMIZERS[optim.optimizer]
    found = [f"the optimiser has {key}, which {kind} does not" for key in contents.moments if key not in expected]
    for key, shape in expected.items():
        moment, _, name = key.partition(".")
        what = f"{moment} of tensor {contents.own_name(name)}" if contents.key_map else key
        tensor = contents.moments.get(key)
        if tensor is None:
            found.append(f"{what} is missing in the optimiser state")
        elif tensor.shape != shape:
            found.append(f"{what} has shape {list(tensor.shape)}, the tensor has {list(shape)}")
        elif tensor.dtype not in WEIGHT_DTYPES:
            found.append(f"{what} is {DTYPE_NAMES[tensor.dtype]}, moments are float32: add --no-optimizer")
    return found


def checked(contents: Contents) -> RunConfig:
    """The configuration of a checkpoint whose tensors are exactly its model's.

    Raises:
        UserError: the first problem, and how many there are.
    """
    if contents.config is None:
        raise UserError(
            f"{contents.path} does not say which model it is, and no shape tells the number of heads (n_head): add "
            "--preset NAME, or --config FILE with n_head and feed_forward under [model]"
        )
    found = problems(contents)
    if found:
        more = f" (and {len(found) - 1} more: see `python -m convert inspect`)" if len(found) > 1 else ""
        raise UserError(f"{contents.path}: {found[0]}{more}. Copy it again, or save the complete model it describes")
    return contents.config
