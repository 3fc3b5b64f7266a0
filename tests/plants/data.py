"""Kind 4: which data is which."""

from __future__ import annotations

from convert.parity.mutants.planted import Edit
from tests.plants.plant import Plant

RUN, BATCHES = "gpt_common/training/run.py", "gpt_common/data/batches.py"
OFFSETS = "generator.integers(0, len(split) - block_size, size=batch_size)"

PLANTS = (
    Plant(
        "validation batches are drawn from the training split",
        4,
        (Edit(RUN, "Run.evaluate", "self.health.loss_on(self.health.val)", "self.health.loss_on(self.health.train)"),),
        says="split",
        told=True,
    ),
    Plant(
        "training batches are drawn from the validation split",
        4,
        (Edit(RUN, "Run.batches", "self.opening.train,", "self.opening.val,"),),
        says="split",
        told=True,
    ),
    Plant(
        "the splits are opened the other way round",
        4,
        (
            Edit("gpt_common/data/dataset.py", "open_folder", 'train=splits["train"]', 'train=splits["val"]'),
            Edit("gpt_common/data/dataset.py", "open_folder", 'val=splits["val"]', 'val=splits["train"]'),
        ),
        says="split",
        tests=("tests/gpt_common/data/test_dataset.py", "-k", "becomes_its_ids"),
    ),
    Plant(
        "both splits are the training text",
        4,
        (Edit("gpt_common/data/dataset.py", "open_folder", 'val=splits["val"]', 'val=splits["train"]'),),
        says="validation text stands in the training text",
    ),
    Plant(
        "every step has the batch of step 0",
        4,
        (Edit(BATCHES, "training_batch", '"batch", step, micro_step, rank', '"batch", 0, micro_step, rank'),),
        says="do not depend on the step",
    ),
    Plant(
        "batches go round after ten steps",
        4,
        (Edit("gpt_common/training/run.py", "Run.batches", "step=step,", "step=step % 10,"),),
        says="was given",
    ),
    Plant(
        "batches come from the first tenth of the text",
        4,
        (
            Edit(
                BATCHES,
                "training_batch",
                OFFSETS,
                OFFSETS.replace("block_size,", "block_size - len(split) * 9 // 10,"),
            ),
        ),
        asks="",
        tests=("tests/gpt_common/test_keyed.py",),
    ),
    Plant(
        "labels are two tokens later",
        4,
        (
            Edit(BATCHES, "_windows", "np.arange(block_size + 1)", "np.arange(block_size + 2)"),
            Edit(BATCHES, "_windows", "windows[:, :-1]", "windows[:, :-2]"),
            Edit(BATCHES, "_windows", "windows[:, 1:]", "windows[:, 2:]"),
        ),
        says="shifted by one",
    ),
    Plant(
        "labels are the tokens",
        4,
        (Edit(BATCHES, "_windows", "windows[:, 1:]", "windows[:, :-1]"),),
        says="shift",
    ),
    Plant(
        "every evaluation is on other text",
        4,
        (
            Edit(
                "gpt_common/training/health/watch.py",
                "Health._mean_loss",
                "train = self.config.train",
                "train, split = self.config.train, split[1000 * self._evaluations :]",
            ),
        ),
        says="evaluation",
    ),
    Plant(
        "validation is the beginning of its split alone",
        4,
        (Edit(BATCHES, "evaluation_batches", "len(split) - block_size - 1, batches", "block_size, batches"),),
        asks="",
        tests=("tests/gpt_common/test_keyed.py",),
    ),
)
