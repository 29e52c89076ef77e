"""Rules: which mesh axes each logical axis ("embed", "heads", "batch") is split over, in training and in serving."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jax.sharding import PartitionSpec

LogicalAxes = Sequence[str | None]


class ShardingError(ValueError):
    """A mesh, rule or shape that cannot be placed, named in the message."""


@dataclass(frozen=True)
class Rules:
    """Which mesh axes each logical axis is split over. Hashable, so it can be part of a jit key.

    Build with `Rules.of({"embed": "data", "heads": "tensor", "layers": None})`.
    """

    table: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def of(cls, mapping: Mapping[str, str | Sequence[str] | None]) -> "Rules":
        """Return rules from a dictionary; None means "not split"."""
        rows = []
        for name, axes in mapping.items():
            rows.append((name, () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)))
        return cls(tuple(rows))

    def replace(self, **changes: str | Sequence[str] | None) -> "Rules":
        """Return a copy with some logical axes mapped anew."""
        return Rules.of({**dict(self.table), **changes})

    def spec(self, axes: LogicalAxes) -> PartitionSpec:
        """Return the PartitionSpec of an array with these logical axes (None: an axis that is never split).

        Raises:
            ShardingError: an unknown logical axis, or two dimensions of one array on the same mesh axis.
        """
        table, used, entries = dict(self.table), {}, []  # type: ignore[var-annotated]
        for name in axes:
            if name is None:
                entries.append(None)
                continue
            if name not in table:
                raise ShardingError(f"there is no sharding rule for the logical axis {name!r}; known: {sorted(table)}.")
            for mesh_axis in table[name]:
                if mesh_axis in used:
                    raise ShardingError(
                        f"logical axes {used[mesh_axis]!r} and {name!r} of one array {tuple(axes)} are both split over "
                        f"the mesh axis {mesh_axis!r}."
                    )
                used[mesh_axis] = name
            mesh_axes = table[name]
            entries.append(None if not mesh_axes else mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes)
        return PartitionSpec(*entries)


# Activations: batch, length, hidden. Parameters: the rest ("hidden" too, for norms).
# Training splits every large parameter over `data` as well (FSDP, Rajbhandari et al. 2019, arXiv 1910.02054, stage 3), and over
# `context`, whose devices would otherwise hold copies.
TRAINING = Rules.of(
    {
        "batch": ("replica", "data", "expert"),
        "length": "context",
        "hidden": None,
        "layers": None,
        "vocab": "tensor",
        "embed": ("data", "context"),
        "heads": "tensor",
        "kv_heads": "tensor",
        "head_dim": None,
        "router": None,
        "mlp": "tensor",
        "expert": "expert",
    }
)
# Serving keeps whole copies of the weights along `data`: a decode step is too short to gather them.
SERVING = TRAINING.replace(embed=None)
