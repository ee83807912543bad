"""Contact sheets: a captioned grid of pictures in one PNG."""

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from meshgpt_pytorch.checkpoint.atomic import PathLike, atomic_path
from meshgpt_pytorch.evaluation.pictures import (
    BLUE,
    PAPER,
    Bounds,
    Color,
    Image,
    mesh_bounds,
    render_mesh,
)
from meshgpt_pytorch.mesh import Mesh
from meshgpt_pytorch.typing import typecheck

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

__all__ = ["contact_sheet"]

CLAY: Color = (236, 222, 202)
AMBER: Color = (250, 192, 132)
COLUMN_COLORS = (CLAY, BLUE, AMBER)
WHITE: Color = (255, 255, 255)
TITLE_INK: Color = (92, 100, 114)
CAPTION_INK: Color = (30, 36, 48)


class Layout(NamedTuple):
    """Where everything on a contact sheet is, in pixels."""

    tile: int
    num_columns: int
    rows_per_group: int
    num_groups: int

    @property
    def gap(self) -> int:
        return max(2, self.tile // 32)

    @property
    def margin(self) -> int:
        return self.tile // 8

    @property
    def font_size(self) -> int:
        return max(10, self.tile // 12)

    @property
    def line_height(self) -> int:
        return self.font_size * 17 // 10

    @property
    def group_width(self) -> int:
        return self.num_columns * (self.tile + self.gap) - self.gap

    @property
    def row_height(self) -> int:
        return self.line_height + self.tile + 2 * self.gap

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        width = self.num_groups * (self.group_width + self.margin) + self.margin
        height = 2 * self.margin + self.line_height + self.rows_per_group * self.row_height
        return width, height

    def column_left(self, group: int, column: int) -> int:
        left = self.margin + group * (self.group_width + self.margin)
        return left + column * (self.tile + self.gap)

    def row_top(self, row: int) -> int:
        """Top of a row's caption; its tiles are one line lower."""
        return self.margin + self.line_height + row * self.row_height


def load_font(size: int) -> "FreeTypeFont":
    """Load Pillow's own scalable font, so that no font of the system is needed."""
    try:
        from PIL import ImageFont

        font = ImageFont.load_default(size=size)
    except ImportError as error:
        raise RuntimeError(
            "contact_sheet needs Pillow with FreeType to write captions, which is not installed; "
            "install it with `pip install meshgpt-pytorch[pictures]`"
        ) from error
    assert isinstance(font, ImageFont.FreeTypeFont), "a size asks for the scalable font"
    return font


def shorten(text: str, font: "FreeTypeFont", width: int) -> str:
    """Cut a caption to one line that fits, with an ellipsis where something was left out."""
    text = " ".join(text.split())
    # more does not fit: no character is narrower than a pixel
    start = text[: width + 1]
    if start == text and font.getlength(text) <= width:
        return text
    lengths = range(len(start))
    fitting = bisect_right(
        lengths, float(width), key=lambda end: font.getlength(start[:end] + "...")
    )
    return start[: max(0, fitting - 1)].rstrip() + "..."


def check_rows(
    rows: Sequence[Sequence[Mesh | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
) -> None:
    """Check that there are rows, and a label for each row and column."""
    if len(rows) == 0:
        raise ValueError("rows must hold at least one row of meshes, got none")
    if len(row_labels) != len(rows):
        raise ValueError(
            f"row_labels must name each of the {len(rows)} rows, got {len(row_labels)} labels"
        )
    for index, row in enumerate(rows):
        if len(row) != len(column_labels):
            raise ValueError(
                f"every row must have one mesh for each of the {len(column_labels)} column labels, "
                f"got {len(row)} in row {index}; pass None where there is no mesh"
            )


def common_bounds(row: Sequence[Mesh | None]) -> Bounds | None:
    """Return the box of all meshes of a row: they are drawn to one scale, so they compare."""
    boxes = [box for mesh in row if mesh is not None and (box := mesh_bounds(mesh)) is not None]
    if not boxes:
        return None
    return np.min([low for low, _ in boxes], axis=0), np.max([high for _, high in boxes], axis=0)


def draw_tiles(
    rows: Sequence[Sequence[Mesh | None]],
    layout: Layout,
    colors: Sequence[Color],
    azimuth: float,
    elevation: float,
) -> Image:
    """Draw all pictures of a sheet, without the text."""
    width, height = layout.size
    sheet = np.full((height, width, 3), WHITE, dtype=np.uint8)
    for index, meshes in enumerate(rows):
        group, row = divmod(index, layout.rows_per_group)
        bounds = common_bounds(meshes)
        top = layout.row_top(row) + layout.line_height
        for column, mesh in enumerate(meshes):
            left = layout.column_left(group, column)
            tile = sheet[top : top + layout.tile, left : left + layout.tile]
            tile[:] = PAPER
            if mesh is not None:
                tile[:] = render_mesh(
                    mesh,
                    size=layout.tile,
                    azimuth=azimuth,
                    elevation=elevation,
                    bounds=bounds,
                    color=colors[column % len(colors)],
                )
    return sheet


def write_captions(
    draw: "ImageDraw", layout: Layout, row_labels: Sequence[str], column_labels: Sequence[str]
) -> None:
    """Write the titles of the columns, over each group, and the captions of the rows."""
    font = load_font(layout.font_size)
    for group in range(layout.num_groups):
        for column, label in enumerate(column_labels):
            left = layout.column_left(group, column)
            text = shorten(label, font, layout.tile)
            draw.text((left, layout.margin // 2), text, font=font, fill=TITLE_INK)
    for index, label in enumerate(row_labels):
        group, row = divmod(index, layout.rows_per_group)
        text = shorten(label, font, layout.group_width)
        left, top = layout.column_left(group, 0), layout.row_top(row)
        draw.text((left, top + layout.font_size // 3), text, font=font, fill=CAPTION_INK)


@typecheck
def contact_sheet(
    rows: Sequence[Sequence[Mesh | None]],
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    path: PathLike | None = None,
    tile: int = 192,
    row_groups: int = 1,
    colors: Sequence[Color] = COLUMN_COLORS,
    azimuth: float | int = 35.0,
    elevation: float | int = 25.0,
) -> Image:
    """Draw meshes that belong together side by side, one row for each, with captions.

    Args:
        rows: meshes, the same number in each row; None leaves a tile empty. The meshes of a row
            are drawn to one scale.
        row_labels: caption above each row. What does not fit is cut with an ellipsis.
        column_labels: title above each column.
        path: PNG file to write, in one step; by default none.
        tile: width and height of a picture in pixels.
        row_groups: number of stacks of rows beside each other, for a sheet that is not too tall.
        colors: of the columns, red, green, blue, 0 to 255; used again from the first if too few.
        azimuth: as for `render_mesh`.
        elevation: as for `render_mesh`.

    Returns:
        ``(height, width, 3)`` uint8.

    Raises:
        ValueError: no rows, rows of different lengths, labels that do not fit the rows, a tile
            under 32 pixels, no colors, or a path that does not end in .png.
        RuntimeError: Pillow is not installed.
    """
    check_rows(rows, row_labels, column_labels)
    if tile < 32:
        raise ValueError(f"tile must be at least 32 pixels to leave room for text, got {tile}")
    if row_groups < 1:
        raise ValueError(f"row_groups must be at least 1, got {row_groups}")
    if len(colors) == 0:
        raise ValueError("colors must hold at least one color, got none")
    if path is not None and Path(path).suffix.lower() != ".png":
        raise ValueError(f"path must end in .png, got {str(path)!r}")
    load_font(9)  # fails before the work is done
    from PIL import Image as PillowImage, ImageDraw

    num_groups = min(row_groups, len(rows))
    layout = Layout(tile, len(column_labels), -(-len(rows) // num_groups), num_groups)
    picture = PillowImage.fromarray(draw_tiles(rows, layout, colors, azimuth, elevation))
    write_captions(ImageDraw.Draw(picture), layout, row_labels, column_labels)
    if path is not None:
        with atomic_path(path) as temporary:
            picture.save(temporary, format="PNG", optimize=True)
    return np.array(picture)
