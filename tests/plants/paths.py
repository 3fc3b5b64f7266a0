"""Kind 1: what stands only on the path that trains, and not on the one that is easily asked."""

from __future__ import annotations

from convert.parity.mutants.planted import Edit
from tests.plants.plant import Plant, both

HALF = "half = max(1, batch.tokens.shape[1] // 2)\n    "
FIRST_HALF = "Batch(batch.tokens[:, :half], batch.labels[:, :half])"
OBJECTIVE = "mean_loss = loss(model, batch, key)"

PLANTS = (
    Plant(
        "the mask lets training with dropout see the next token",
        1,
        (
            Edit(
                "torch_gpt/attention.py",
                "causal_attention",
                "is_causal=T == S > 1",
                "is_causal=T == S > 1 and not rate",
            ),
            Edit("mlx_gpt/attention.py", "Attention.attend", "mx.tri(T, T, dtype", "mx.tri(T, T, 1, dtype"),
        ),
        says="future",
        told=True,
    ),
    Plant(
        "the mask of shared dropout sees the next token",
        1,
        both(
            "Attention.attend", "attention.py", (".tril()", ".tril(1)"), ("mx.tri(T, T, dtype", "mx.tri(T, T, 1, dtype")
        ),
        says="future",
        asks="shared dropout",
        told=True,
    ),
    Plant(
        "the objective is over the first half of the positions",
        1,
        both("objective", "model.py", (OBJECTIVE, f"{HALF}mean_loss = loss(model, {FIRST_HALF}, key)")),
        says="positions|the step changes the ids|not the mean over all",
        told=True,
    ),
    Plant(
        "the gradient is that of half the positions, the loss that of all",
        1,
        both(
            "objective",
            "model.py",
            (
                "return model.routers.counted(mean_loss), mean_loss",
                f"{HALF}return model.routers.counted(loss(model, {FIRST_HALF}, key)), mean_loss",
            ),
        ),
        says="derivative|positions",
    ),
    Plant(
        "ids go through 16 bits in the step",
        1,
        both(
            "TrainStep.__call__",
            "train.py",
            (
                "to_device(batch, self.model.device)",
                'to_device(Batch(batch.tokens.astype("int16").astype("int32") % self.config.model.vocab_size, '
                "batch.labels, batch.weights), self.model.device)",
            ),
        ),
        says="ids",
        asks="large vocabulary",
        told=True,
    ),
    Plant(
        "a checkpointed block gets no dropout key",
        1,
        both(
            "GPT.forward",
            "model.py",
            ("checkpoint(block, x_BTD, key, None", "checkpoint(block, x_BTD, None, None"),
            ("partial(block, key=key,", "partial(block, key=None,"),
        ),
        says="dropped",
        asks="gradient checkpointing",
    ),
    Plant(
        "nothing is dropped after the embedding",
        1,
        both(
            "GPT.forward",
            "model.py",
            ("x_BTD = dropout(x_BTD, self.config.dropout, key, 0,", "x_BTD = dropout(x_BTD, 0.0, key, 0,"),
        ),
        says="dropped",
    ),
    Plant(
        "the loss of the step smooths its labels",
        1,
        (
            Edit(
                "torch_gpt/kernels.py",
                "cross_entropy",
                'labels_X.flatten(), reduction="none")',
                'labels_X.flatten(), reduction="none", label_smoothing=0.1 if torch.is_grad_enabled() else 0.0)',
            ),
        ),
        says="derivative|trains on another loss|loss",
    ),
    Plant(
        "the embedding is cut off from the gradient where a key is given",
        1,
        (
            Edit(
                "mlx_gpt/model.py",
                "GPT.__call__",
                "x_BTD = dropout(x_BTD, self.config.dropout, key, 0,",
                "x_BTD = dropout(x_BTD if key is None else mx.stop_gradient(x_BTD), self.config.dropout, key, 0,",
            ),
        ),
        says="derivative|gradient|dropped after the embedding",
    ),
    Plant(
        "busy experts are made busier",
        1,
        both(
            "MixtureOfExperts.balance",
            "experts.py",
            ("self.config.balancing_rate * missing_E", "-self.config.balancing_rate * missing_E"),
        ),
        says="busier",
        asks="experts",
        tests=("tests/twins/test_families.py", "-k", "expert_loads"),
    ),
)
