"""How well an autoencoder rebuilds meshes, seen and unseen, after a given time of training.

    python -m benchmarks.autoencoder_quality --list
    python -m benchmarks.autoencoder_quality recipe --minutes 30 --also-after 5 15 --seeds 0 1 2
    python -m benchmarks.autoencoder_quality upstream --upstream PYTHON
    python -m benchmarks.autoencoder_quality --table quality.jsonl

`benchmarks/autoencoder_variants.py` has the variants, `benchmarks/autoencoder_training.py` the
protocol. Each of `--minutes` is a
training of its own, at whose end the learning rate is zero; with `--also-after` it is measured on
its way too, while it still learns.

A run adds a line to the file `--out` as it ends, and is not repeated if it is there: start again
what was cut off, and it goes on. `--table` turns such a file into a table.

With `--clock cpu` the budget counts time of the processor, so that other processes may run beside.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby, product
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.autoencoder_training import (
    add_options,
    read_data,
    require_upstream,
    train_or_read,
    training_of,
)
from benchmarks.autoencoder_variants import VARIANTS
from benchmarks.result_lines import add_line, read_lines


def train_all(arguments: argparse.Namespace) -> None:
    """Train each variant with each seed for each time, but for what is in the file already."""
    data = read_data(arguments)
    results = read_lines(arguments.out)
    # all variants of a seed before the next one: what is cut off early has compared something
    for minutes, seed, name in product(arguments.minutes, arguments.seeds, arguments.variants):
        training = training_of(arguments, name, seed=seed, minutes=minutes)
        moments = [moment for moment in arguments.also_after if moment < minutes]
        identity = {**asdict(training), "of": minutes}
        known = {
            result["minutes"]
            for result in results
            if all(result[key] == identity[key] for key in identity if key != "minutes")
        }
        if known >= {*moments, minutes}:
            continue
        if known:
            # another training would differ, as time does
            raise ValueError(
                f"a training must be measured whole, got {sorted(known)} minutes of {identity} in "
                f"{arguments.out}; take these lines out, or ask for these moments alone"
            )
        _, measured = train_or_read(training, data, arguments, moments)
        new = [{**identity, **each} for each in measured]
        results.extend(new)
        for result in new:
            add_line(arguments.out, result)
        print(f"{name}, seed {seed}, {minutes:g} minutes", flush=True)
    print_table([result for result in results if result["variant"] in arguments.variants])


def print_table(results: Sequence[Mapping[str, Any]]) -> None:
    """Print means over seeds, with the least and the greatest value."""
    setting = ("minutes", "of", "clock", "threads", "pack", "near_duplicates")
    columns = ("variant", *setting, "seeds", "steps", "coordinates: train", "val")
    print("| " + " | ".join((*columns, "triangles: train", "val")) + " |")
    print("|" + "---|" * (len(columns) + 2))
    names = {name: place for place, name in enumerate(dict.fromkeys(r["variant"] for r in results))}

    def row_of(result: Mapping[str, Any]) -> tuple[Any, ...]:
        return (*(result[key] for key in setting), names[result["variant"]])

    for _, group in groupby(sorted(results, key=row_of), row_of):
        runs = list(group)
        shares = [
            spread([run[part][kind] for run in runs])
            for kind in ("coordinate", "triangle")
            for part in ("train", "val")
        ]
        values = (runs[0]["variant"], *(runs[0][key] for key in setting), len(runs))
        steps = round(mean(run["steps"] for run in runs))
        print("| " + " | ".join(map(str, (*values, steps, *shares))) + " |")


def spread(values: Sequence[float]) -> str:
    """Return the mean, and the ends of more than one value."""
    ends = f" ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else ""
    return f"{mean(values):.3f}{ends}"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("variants", nargs="*", choices=[*VARIANTS, []], help="default: all")
    parser.add_argument("--list", action="store_true", help="print the names of the variants")
    parser.add_argument("--table", type=Path, help="print what this file of results says")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0, 15.0, 30.0])
    parser.add_argument(
        "--also-after", type=float, nargs="+", default=[], help="minutes of a longer training"
    )
    add_options(parser)
    arguments = parser.parse_args()
    arguments.variants = arguments.variants or list(VARIANTS)
    if not (arguments.list or arguments.table):
        require_upstream(parser, arguments)
    return arguments


def main() -> None:
    """Train what the command line asks for, and print and write what it reached."""
    arguments = parse_arguments()
    if arguments.list:
        print("\n".join(VARIANTS))
    elif arguments.table:
        print_table(read_lines(arguments.table))
    else:
        train_all(arguments)


if __name__ == "__main__":
    main()
