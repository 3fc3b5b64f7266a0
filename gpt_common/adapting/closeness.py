"""How near a model's distributions are to another's, the one that it was made from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Closeness:
    """Sums over the positions of a text."""

    tokens: float = 0.0
    divergence_sum: float = 0.0
    """Kullback-Leibler divergence of the student from the teacher, nats."""
    teacher_sum: float = 0.0
    """Losses of the teacher, and of the student, nats."""
    student_sum: float = 0.0
    agreeing: float = 0.0
    """Positions at which both find the same token the likeliest."""

    def __add__(self, other: Closeness) -> Closeness:
        mine, theirs = ((c.tokens, c.divergence_sum, c.teacher_sum, c.student_sum, c.agreeing) for c in (self, other))
        return Closeness(*(a + b for a, b in zip(mine, theirs, strict=True)))

    @property
    def divergence(self) -> float:
        """Nats per token."""
        return self.divergence_sum / self.tokens

    @property
    def teacher_loss(self) -> float:
        """Nats per token."""
        return self.teacher_sum / self.tokens

    @property
    def student_loss(self) -> float:
        """Nats per token."""
        return self.student_sum / self.tokens

    @property
    def agreement(self) -> float:
        """Share of positions with the same likeliest token."""
        return self.agreeing / self.tokens
