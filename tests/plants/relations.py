"""Kind 2: numbers that are right one by one, and do not fit each other."""

from __future__ import annotations

from convert.parity.mutants.planted import Edit
from tests.plants.plant import Plant, both

PLANTS = (
    Plant(
        "the gradient norm is that times the number of micro-steps",
        2,
        both("TrainStep.__call__", "train.py", ("return mean_loss, norm", "return mean_loss, norm * len(batches)")),
        says="gradient norm",
        told=True,
    ),
    Plant(
        "the loss is that of the last micro-step",
        2,
        both(
            "TrainStep.__call__",
            "train.py",
            (
                "mean_loss = mean_loss + self.accumulate(tensors, key, parts)",
                "mean_loss = self.accumulate(tensors, key, parts)",
            ),
        ),
        says="micro-step",
    ),
    Plant(
        "from the ninth step on the inputs are the labels",
        2,
        both(
            "TrainStep.__call__",
            "train.py",
            (
                "to_device(batch, self.model.device)",
                "to_device(Batch(batch.labels, batch.labels, batch.weights) if step > 7 else batch, self.model.device)",
            ),
        ),
        says="future|other labels|another loss",
    ),
    Plant(
        "the mean of the weights is not updated",
        2,
        both("train", "train.py", ("average.update(step + 1)", "pass")),
        says="evaluation on training text|mean of the weights",
        asks="mean of weights",
    ),
    Plant(
        "the learning rate is ten times what is logged",
        2,
        both(
            "TrainStep.__call__",
            "train.py",
            ("set_step(self.optimizer, step + 1, rate)", "set_step(self.optimizer, step + 1, 10 * rate)"),
        ),
        says="learning rate",
    ),
    Plant(
        "after warm-up the learning rate is a hundred times too high",
        2,
        (
            Edit(
                "gpt_common/training/schedule.py",
                "learning_rate",
                "return optim.min_lr + share * (optim.learning_rate - optim.min_lr)",
                "return 100 * (optim.min_lr + share * (optim.learning_rate - optim.min_lr))",
            ),
        ),
        says="learning rate|learning-rate",
        tests=("tests/gpt_common/training/test_schedule.py",),
    ),
    Plant(
        "every step has the rate of the first",
        2,
        both("train", "train.py", ("learning_rate(step, config", "learning_rate(0, config")),
        says="was its turn",
    ),
    Plant(
        "there is no warm-up",
        2,
        (
            Edit(
                "gpt_common/training/schedule.py",
                "learning_rate",
                "return optim.learning_rate * (step + 1) / (optim.warmup_steps + 1)",
                "return optim.learning_rate",
            ),
        ),
        says="begins with",
    ),
    Plant(
        "the learning rate comes down half the way",
        2,
        (
            Edit(
                "gpt_common/training/schedule.py",
                "learning_rate",
                "optim.min_lr + share * (",
                "optim.min_lr + (1 + share) / 2 * (",
            ),
        ),
        says="ends at step|falls at its last step",
    ),
    Plant(
        "gradients are not clipped",
        2,
        both(
            "TrainStep.clip_and_update",
            "train.py",
            ("clip_gradients(self.model, self.config.optim.grad_clip)", "clip_gradients(self.model, 0.0)"),
            ("clip_gradients(gradients, self.config.optim.grad_clip)", "clip_gradients(gradients, 0.0)"),
        ),
        says="clip",
    ),
    Plant(
        "the validation loss is halved",
        2,
        (
            Edit(
                "gpt_common/training/run.py",
                "Run.evaluate",
                "self.health.loss_on(self.health.val)",
                "0.5 * self.health.loss_on(self.health.val)",
            ),
        ),
        says="validation loss",
    ),
    Plant(
        "evaluation takes labels one further",
        2,
        (
            *both(
                "TrainingProbe.losses",
                "probe.py",
                (
                    "to_device(batch, self.model.device)",
                    "to_device(Batch(batch.tokens[:, :-1], batch.labels[:, 1:]), self.model.device)",
                ),
            ),
            Edit("torch_gpt/probe.py", "", "import NumpyBatch, Tokens", "import Batch, NumpyBatch, Tokens"),
        ),
        says="labels|loss",
    ),
)
