"""All plants."""

from __future__ import annotations

from tests.plants import conversion, data, invariants, measurement, paths, relations, saved, sizes

PLANTS = (
    *paths.PLANTS,
    *relations.PLANTS,
    *invariants.PLANTS,
    *data.PLANTS,
    *saved.PLANTS,
    *sizes.PLANTS,
    *measurement.PLANTS,
    *conversion.PLANTS,
)
