"""Kind 3: what must hold of every step."""

from __future__ import annotations

from convert.parity.mutants.planted import Edit
from tests.plants.plant import Plant, both

KEY = "words = dropout_key(self.config.train.seed, step, micro_step)"

PLANTS = (
    Plant(
        "every micro-step is given micro-batch 0",
        3,
        both(
            "TrainStep.__call__",
            "train.py",
            ("to_device(batch, self.model.device)", "to_device(batches[0], self.model.device)"),
        ),
        says="micro-batch|micro-step",
        told=True,
    ),
    Plant(
        "every micro-step draws micro-batch 0",
        3,
        (Edit("gpt_common/training/run.py", "Run.batches", "micro_step=micro_step,", "micro_step=0,"),),
        says="micro-batch|micro-step",
        told=True,
    ),
    Plant(
        "micro-gradients are summed",
        3,
        (
            Edit("torch_gpt/train.py", "TrainStep.accumulate", "(value / parts).backward()", "value.backward()"),
            Edit(
                "mlx_gpt/train.py",
                "TrainStep.add_gradients",
                "lambda gradient: gradient / parts",
                "lambda gradient: gradient",
            ),
        ),
        says="summed|micro-gradients",
        told=True,
    ),
    Plant(
        "dropout is never applied",
        3,
        both("TrainStep.key", "train.py", ("if not self.config.drops:", "if self.config.model.dropout >= 0:")),
        says="nothing is dropped",
        told=True,
    ),
    Plant(
        "dropout has twice its rate",
        3,
        both(
            "dropout",
            "layers.py",
            (
                "if key is None or rate == 0:\n        return x",
                "if key is None or rate == 0:\n        return x\n    rate *= 2",
            ),
        ),
        says="dropped.*dropout is",
        told=True,
    ),
    Plant(
        "attention drops its weights at half the rate",
        3,
        (
            Edit(
                "torch_gpt/attention.py",
                "Attention.attend",
                "rate = 0.0 if key is None else self.dropout",
                "rate = 0.0 if key is None else self.dropout / 2",
            ),
            Edit(
                "mlx_gpt/attention.py",
                "Attention.attend",
                "dropout(weights_BHTS, self.dropout,",
                "dropout(weights_BHTS, self.dropout / 2,",
            ),
        ),
        says="dropped",
    ),
    Plant(
        "all micro-steps drop the same",
        3,
        both("TrainStep.key", "train.py", (KEY, KEY.replace("micro_step)", "0)"))),
        says="mask|the same",
    ),
    Plant(
        "all steps drop the same",
        3,
        both("TrainStep.key", "train.py", (KEY, KEY.replace("step, micro_step)", "0, micro_step)"))),
        says="mask|the same",
    ),
    Plant(
        "all sites drop the same",
        3,
        (
            Edit("mlx_gpt/layers.py", "uniform", "mx.array([0, site], dtype", "mx.array([0, 0], dtype"),
            Edit("torch_gpt/layers.py", "uniform", "np.array([0, site], np.uint32)", "np.array([0, 0], np.uint32)"),
        ),
        says="mask|the same",
        asks="shared dropout",
    ),
    Plant(
        "what is kept is not scaled up",
        3,
        (
            Edit(
                "mlx_gpt/layers.py",
                "dropout",
                "mx.where(keep, x / (1 - rate), mx.zeros_like(x))",
                "mx.where(keep, x, mx.zeros_like(x))",
            ),
            Edit(
                "torch_gpt/layers.py",
                "dropout",
                "torch.where(keep, x / (1 - rate), torch.zeros_like(x))",
                "torch.where(keep, x, torch.zeros_like(x))",
            ),
        ),
        says="scale",
        asks="shared dropout",
        tests=("tests/twins/test_dropout.py",),
    ),
    Plant(
        "gradients stay for the next step",
        3,
        (
            Edit("torch_gpt/train.py", "TrainStep.clip_and_update", "self.model.zero_grad(set_to_none=True)", "pass"),
            Edit("mlx_gpt/train.py", "TrainStep.__call__", "self.gradients = None  #", "pass  #"),
        ),
        says="leaves behind|micro-step",
    ),
    Plant(
        "small gradients are brought to clipping's norm too",
        3,
        (
            Edit(
                "torch_gpt/optim.py",
                "clip_gradients",
                "torch.nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm)",
                "[p.grad.mul_(largest / norm) for p in model.parameters()]",
            ),
            Edit("mlx_gpt/optim.py", "clip_gradients", "mx.minimum(largest / (norm + 1e-6), 1.0)", "largest / norm"),
        ),
        says="Clipping",
    ),
    Plant(
        "vectors decay too",
        3,
        (
            Edit("torch_gpt/optim.py", "build_optimizer", '"weight_decay": 0.0', '"weight_decay": config.weight_decay'),
            Edit("mlx_gpt/optim.py", "AdamW.apply_single", "if parameter.ndim >= 2:", "if parameter.ndim >= 1:"),
        ),
        says="weight decay",
    ),
    Plant(
        "the second moment forgets ten times too fast",
        3,
        (
            Edit(
                "torch_gpt/optim.py",
                "build_optimizer",
                "betas = (config.beta1, config.beta2)",
                "betas = (config.beta1, 10 * config.beta2 - 9)",
            ),
            Edit(
                "mlx_gpt/optim.py",
                "AdamW.__init__",
                "[config.beta1, config.beta2]",
                "[config.beta1, 10 * config.beta2 - 9]",
            ),
        ),
        says="moments",
    ),
)
