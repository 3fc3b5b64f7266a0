"""Wrong ranks: replacements in the source of a twin's step, of its sum, or of what ranks agree on.

Processes that a launcher starts take no mutant along: they are told which faults to plant in themselves. So this file
imports no framework.
"""

from __future__ import annotations

from dataclasses import dataclass

from convert.parity.mutants.planted import Edit

AGREEMENT = "gpt_common/training/ranks/agreement.py"
RUN = "gpt_common/training/run.py"
STEP = "TrainStep.__call__"
KEY = "dropout_key(self.config.train.seed, step, micro_step)"
BEFORE_SUM = {
    "torch_gpt": "        mean_loss = self.ranks.add_up(",
    "mlx_gpt": "        # Alone, nothing is to be added.\n",
}
CLIP = {
    "torch_gpt": "clip_gradients(self.model, self.config.optim.grad_clip)",
    "mlx_gpt": "self.gradients = clip_gradients(self.gradients, self.config.optim.grad_clip)[0]",
}
BEST = """\
            best = self.best_val_loss is None or val_loss < self.best_val_loss
            if best:
                self.best_step, self.best_val_loss = step, val_loss
"""
BEST_OF_LAST = """\
            asked = self.health._asked[self.health._asked_first :]
            share = [loss for _, (_, loss) in self.ranks.dealt(asked)]
            theirs = float(self.ranks.gather(str(sum(share) / len(share)))[-1])
            best = self.best_val_loss is None or theirs < self.best_val_loss
            if best:
                self.best_step, self.best_val_loss = step, theirs
"""


@dataclass(frozen=True)
class RankFault:
    """One fault of ranks."""

    name: str
    edit: Edit
    family: str = "gpt"
    """The model that has what it breaks."""
    ends: bool = False
    """Ranks part over it, and what is launched does nothing more."""


def rank_faults(twin: str) -> list[RankFault]:
    """The faults in a twin, or in what both twins share."""
    return [
        RankFault(
            "mean for sum, of ranks whose positions do not count alike",
            Edit(
                f"{twin}/train.py",
                STEP,
                "counted = sum(positions(batch) for batch in self.ranks.counted(batches))",
                "counted = sum(positions(batch) for _, batch in self.ranks.dealt(batches)) * self.ranks.world",
            ),
        ),
        RankFault(
            "gradients clipped before ranks add them up",
            Edit(f"{twin}/train.py", STEP, BEFORE_SUM[twin], f"        {CLIP[twin]}\n{BEFORE_SUM[twin]}"),
        ),
        RankFault(
            "the same micro-steps on all ranks",
            Edit(AGREEMENT, "Agreement.dealt", "[self.rank :: self.world]", "[0 :: self.world]"),
        ),
        RankFault(
            "dropout by rank",
            Edit(f"{twin}/train.py", "TrainStep.key", KEY, KEY.replace("step)", "step + self.ranks.rank)")),
        ),
        RankFault(
            "evaluation counts the first rank's batches twice",
            Edit(AGREEMENT, "Agreement.losses", "theirs[number % self.world]", "theirs[0]"),
        ),
        RankFault("best checkpoint by the last rank's share", Edit(RUN, "Run.evaluate", BEST, BEST_OF_LAST)),
        RankFault(
            "loads of experts not added up",
            Edit(f"{twin}/distributed.py", "Ranks.add_up", "model.routers.take_step_loads(rest[1:-1])", ""),
            family="deepseek",
        ),
        RankFault(
            "each rank stops by its own flag",
            Edit(AGREEMENT, "Agreement.stopped_by", "zip(SIGNALS, self.agreed", "zip(SIGNALS, self.wished"),
            ends=True,
        ),
    ]
