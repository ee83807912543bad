"""What became of every file: as a page of text, as JSON, and as an object."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meshgpt_pytorch.prepare.results import MeshRecord

__all__ = ["PrepareReport"]

HISTOGRAM_EDGES = (0, 25, 50, 100, 200, 400, 800, 1600, 3200, 10_000, 100_000)
LISTED = 50
BAR = 40


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare_meshes` did.

    Attributes:
        source: what was read.
        target: the folder of the data set.
        options: as given.
        records: what became of each mesh, in the order of the sources, with several budgets of each
            level; those with the outcome "kept" are the meshes of the data set, in the same order.
        duplicate_groups: keys of kept meshes that look alike.
        missing_captions: keys of kept meshes without a caption of the kind asked for.
        cut_labels: keys of kept meshes with a caption or another label too long to be kept whole.
        seconds: that it all took.
    """

    source: str
    target: str
    options: dict[str, Any]
    records: tuple[MeshRecord, ...]
    duplicate_groups: tuple[tuple[str, ...], ...]
    missing_captions: tuple[str, ...]
    cut_labels: tuple[str, ...]
    seconds: float

    @property
    def outcomes(self) -> dict[str, int]:
        """How many meshes or levels came to each outcome, the most frequent first."""
        return dict(Counter(record.outcome for record in self.records).most_common())

    @property
    def kept(self) -> tuple[MeshRecord, ...]:
        """The meshes of the data set."""
        return tuple(record for record in self.records if record.outcome == "kept")

    @property
    def rejected(self) -> tuple[MeshRecord, ...]:
        """The meshes that were left out, each with its reason."""
        return tuple(record for record in self.records if record.outcome != "kept")

    @property
    def first_records(self) -> tuple[MeshRecord, ...]:
        """One record of each mesh, where there are several budgets that of the lowest."""
        return tuple({record.key: record for record in reversed(self.records)}.values())

    def __str__(self) -> str:
        """How many came to each outcome, and where the rest is told."""
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.items())
        meshes = f"{len(self.first_records)} meshes"
        return f"{meshes}: {counts}; see {Path(self.target, 'report.txt')}"

    def page(self) -> str:
        """Write a page of text."""
        reused = sum(record.is_reused for record in self.records)
        lines = [
            f"{self.source} -> {self.target}, {len(self.first_records)} meshes in "
            f"{self.seconds:.0f} s, {reused} results from an earlier run",
            *self.outcome_lines(),
            *self.histogram_lines(),
            *self.distance_lines(),
            *self.inspection_lines(),
            *self.duplicate_lines(),
            *named_lines("Without a caption", self.missing_captions),
            *named_lines("With a label too long, which was cut", self.cut_labels),
        ]
        if self.rejected:
            lines += ["", "Left out, and why"]
            lines += [f"  {each.key}: {each.outcome}: {each.reason}" for each in self.rejected]
        return "\n".join([*lines, ""])

    def outcome_lines(self) -> list[str]:
        """Count the outcomes, for each budget where there are several."""
        lines = []
        for budget in sorted({record.max_faces or 0 for record in self.records}):
            records = [each for each in self.records if (each.max_faces or 0) == budget]
            counts = Counter(record.outcome for record in records).most_common()
            lines += ["", f"Outcomes with at most {budget} faces"]
            lines += [f"  {count:6d}  {outcome}" for outcome, count in counts]
        return lines

    def histogram_lines(self) -> list[str]:
        """Draw how many faces meshes had before and have now."""
        read = [each.faces_before for each in self.first_records]
        before = [count for count in read if count is not None]
        after = [each.faces_after for each in self.kept if each.faces_after is not None]
        if not before:
            return []
        edges = [*HISTOGRAM_EDGES, np.inf]
        columns = [np.histogram(counts, edges)[0] for counts in (before, after)]
        scale = max(1, *(int(column.max()) for column in columns)) / BAR
        lines = ["", "Faces            before                                     after"]
        for low, high, old, new in zip(edges, edges[1:], *columns, strict=False):
            if old or new:
                name = f"{low:>6g} - {high:<6g}" if np.isfinite(high) else f"{low:>6g} and up "
                bars = (f"{count:5d} {'#' * round(count / scale):<{BAR}}" for count in (old, new))
                lines.append(f"  {name} {' '.join(bars)}".rstrip())
        return lines

    def distance_lines(self) -> list[str]:
        """Tell how far the kept meshes are from the originals."""
        if not self.kept:
            return []
        lines = ["", "Distance to the original, in the [-1, 1] cube"]
        for name in ("hausdorff", "chamfer"):
            values = [getattr(each, name) for each in self.kept if getattr(each, name) is not None]
            median, high, most = np.percentile(values, [50, 90, 100])
            lines.append(f"  {name:9}  median {median:.4f}, 90 % {high:.4f}, most {most:.4f}")
        return lines

    def inspection_lines(self) -> list[str]:
        """Tell what state the files were in."""
        read = [each.inspection for each in self.first_records]
        found = [inspection for inspection in read if inspection is not None]
        if not found:
            return []
        share = 100 / len(found)
        facts = {
            "of several parts": sum(each["num_components"] > 1 for each in found),
            "with boundary edges": sum(each["num_boundary_edges"] > 0 for each in found),
            "with non-manifold edges": sum(each["num_nonmanifold_edges"] > 0 for each in found),
            "with incoherent winding": sum(each["num_incoherent_edges"] > 0 for each in found),
            "with duplicate faces": sum(each["num_duplicate_faces"] > 0 for each in found),
            "flat": sum(each["is_flat"] for each in found),
        }
        lines = ["", f"Of the {len(found)} meshes that could be read"]
        return lines + [f"  {count * share:5.1f} %  {name}" for name, count in facts.items()]

    def duplicate_lines(self) -> list[str]:
        """List the meshes that look alike."""
        groups = self.duplicate_groups
        if not groups:
            return []
        sizes = [len(group) for group in groups]
        lines = [
            "",
            f"Near duplicates: {len(groups)} groups, {sum(sizes)} meshes, "
            f"{max(sizes)} in the largest",
        ]
        lines += [f"  {', '.join(group)}" for group in groups[:LISTED]]
        if len(groups) > LISTED:
            lines.append(f"  and {len(groups) - LISTED} more groups, in report.json")
        return lines

    def to_json(self) -> str:
        """Write all of it as JSON."""
        values = {**asdict(self), "outcomes": self.outcomes}
        return json.dumps(values, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "PrepareReport":
        """Read what `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        del values["outcomes"]
        values["records"] = tuple(MeshRecord(**record) for record in values["records"])
        values["duplicate_groups"] = tuple(map(tuple, values["duplicate_groups"]))
        for name in ("missing_captions", "cut_labels"):
            values[name] = tuple(values[name])
        return cls(**values)


def names_of_groups(groups: Sequence[Sequence[int]], keys: Sequence[str]) -> tuple:
    """Name the meshes of each group."""
    return tuple(tuple(keys[index] for index in group) for group in groups)


def named_lines(title: str, keys: Sequence[str]) -> list[str]:
    """Count meshes, if there are any, and name the first of them."""
    if not keys:
        return []
    return ["", f"{title}: {len(keys)} meshes", *(f"  {key}" for key in keys[:LISTED])]
