"""Kind 7: figures, from where they are made to where they are shown."""

from __future__ import annotations

from convert.parity.mutants.planted import Edit
from tests.plants.plant import Plant

RUN, TIMING = "gpt_common/training/run.py", "gpt_common/training/log/timing.py"
BY_HAND = ("tests/gpt_common/training/test_measured_by_hand.py",)
PAUSED = "with self.timer.paused():"

PLANTS = (
    Plant(
        "MFU is against the float32 peak whatever the dtype",
        7,
        (
            Edit(
                RUN,
                "Run.start",
                "published_peak(hardware, device.name, device.dtype)",
                'published_peak(hardware, device.name, "float32")',
            ),
        ),
        asks="",
        tests=BY_HAND,
        told=True,
    ),
    Plant(
        "saving counts as step time", 7, (Edit(RUN, "Run.save", PAUSED, "if True:"),), asks="", tests=BY_HAND, told=True
    ),
    Plant(
        "evaluation counts as step time", 7, (Edit(RUN, "Run.evaluate", PAUSED, "if True:"),), asks="", tests=BY_HAND
    ),
    Plant("sampling counts as step time", 7, (Edit(RUN, "Run.sample", PAUSED, "if True:"),), asks="", tests=BY_HAND),
    Plant(
        "tokens per second leave out accumulation",
        7,
        (Edit(RUN, "Run.record", "batch_size * self.config.train.grad_accum_steps / dt", "batch_size / dt"),),
        asks="",
        tests=BY_HAND,
    ),
    Plant(
        "the time for data is a sum and not a mean",
        7,
        (Edit(RUN, "Run.record", "self._data_seconds / max(1, self._data_steps)", "self._data_seconds"),),
        asks="",
        tests=BY_HAND,
    ),
    Plant(
        "the first step counts, with its compilation",
        7,
        (
            Edit(
                TIMING,
                "StepTimer.lap",
                "self.first_seconds = seconds\n            return []",
                "self.first_seconds = seconds",
            ),
        ),
        asks="",
        tests=("tests/gpt_common/training/log/test_timing.py",),
    ),
    Plant(
        "a block of queued steps counts as one step",
        7,
        (Edit(TIMING, "StepTimer.lap", "self._window_steps += steps", "self._window_steps += 1"),),
        asks="",
        tests=("tests/gpt_common/training/log/test_timing.py",),
    ),
    Plant(
        "FLOPs leave out attention",
        7,
        (
            Edit(
                "gpt_common/network/flops.py",
                "flops_per_token_palm",
                "+ 6 * model.n_layer * model.n_head * (model.key_size + model.value_width) * T",
                "+ 0 * T",
            ),
        ),
        asks="",
        tests=("tests/gpt_common/network/test_flops.py",),
    ),
    Plant(
        "the summary's tokens per second leave out accumulation",
        7,
        (
            Edit(
                "gpt_common/training/report/ending.py",
                "closing_rows",
                "tokens = config.train.batch_size * config.train.grad_accum_steps * config.model.block_size",
                "tokens = config.train.batch_size * config.model.block_size",
            ),
        ),
        asks="",
        tests=BY_HAND,
    ),
    Plant(
        "a median is a mean",
        7,
        (Edit("benchmarks/measuring/samples.py", "median_of", "np.median(values)", "np.mean(values)"),),
        asks="",
        tests=("tests/benchmarks/measuring/test_measure.py", "-k", "slow_step"),
    ),
)
