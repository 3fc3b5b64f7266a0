"""What came of it: a line for each plant on the console, a table for docs/plants.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.plants.asking import Seen
from tests.plants.plant import KINDS, TWINS, Plant

NAMES = {"torch_gpt": "PyTorch", "mlx_gpt": "MLX", "convert": "convert", "ladder": "ladder", "tests": "tests"}
USER = (*TWINS, "convert")


@dataclass(frozen=True)
class Answer:
    """Who saw a plant."""

    name: str
    kind: int
    told: bool
    seen: dict[str, str]
    """By whom that was asked: `gate: causality`, `alarm`, or nothing."""
    texts: dict[str, str]
    """What a user saw."""
    cause: bool
    """Whether all that a user saw names the cause."""
    seconds: float

    @classmethod
    def of(cls, plant: Plant, seen: Mapping[str, Seen | None], seconds: float) -> Answer:
        """From what each said that was asked."""
        user = [found for who, found in seen.items() if who in USER and found]
        return cls(
            name=plant.name,
            kind=plant.kind,
            told=plant.told,
            seen={
                who: f"{found.by}{': ' * bool(found.what)}{found.what}" if found else "" for who, found in seen.items()
            },
            texts={who: found.text[-600:] for who, found in seen.items() if who in USER and found},
            cause=all(found.names_cause(plant) for found in user),
            seconds=round(seconds, 1),
        )

    @property
    def by_user(self) -> bool:
        """Whether whoever uses it sees it, in every twin in which it stands."""
        asked = [who for who in self.seen if who in USER]
        return bool(asked) and all(self.seen[who] for who in asked)

    @property
    def by_anybody(self) -> bool:
        """Whether somebody sees it."""
        return self.by_user or bool(self.seen.get("ladder") or self.seen.get("tests"))

    @property
    def good(self) -> bool:
        """Seen; and if issue 11 tells it of the trainer, by the trainer, in words that name the cause."""
        must = self.told and self.kind <= 6
        return self.by_anybody and self.cause and (self.by_user or not must)

    def line(self) -> str:
        """For the console."""
        who = ", ".join(f"{NAMES[who]} {what or 'nothing'}" for who, what in self.seen.items()) or "nobody was asked"
        words = "" if self.cause else " (the words do not name the cause)"
        return f"{'ok  ' if self.good else 'LOOK'} {self.kind} {self.name}: {who}{words} [{self.seconds:.0f} s]"


def table(answers: Sequence[Answer], seconds: float) -> str:
    """Markdown: how many by kind, and every plant."""
    lines = ["| kind | plants | seen by a user | by ladder or test | by nobody |", "|---|---|---|---|---|"]
    for kind, what in KINDS.items():
        ours = [answer for answer in answers if answer.kind == kind]
        user, somebody = sum(a.by_user for a in ours), sum(a.by_anybody for a in ours)
        lines.append(f"| {kind}. {what} | {len(ours)} | {user} | {somebody - user} | {len(ours) - somebody} |")
    user, somebody = sum(a.by_user for a in answers), sum(a.by_anybody for a in answers)
    lines.append(f"| all | {len(answers)} | {user} | {somebody - user} | {len(answers) - somebody} |")
    lines += ["", f"In {seconds / 60:.0f} minutes.", ""]
    for kind, what in KINDS.items():
        lines += [f"### {kind}. {what}", "", "| plant | PyTorch | MLX | convert, ladder or test |", "|---|---|---|---|"]
        for answer in (answer for answer in answers if answer.kind == kind):
            twins = [answer.seen.get(twin, "-") or "nothing" for twin in TWINS]
            others = [answer.seen[who] for who in ("convert", "ladder", "tests") if answer.seen.get(who)]
            star = " *" if answer.told else ""
            lines.append(f"| {answer.name}{star} | {' | '.join(twins)} | {', '.join(others)} |")
        lines.append("")
    return "\n".join(lines)
