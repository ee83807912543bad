"""A contact sheet holds every picture in its place, to one scale in a row, and its captions."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from meshgpt_pytorch.evaluation import contact_sheet, render_mesh
from meshgpt_pytorch.evaluation.pictures import BLUE, PAPER, mesh_bounds
from meshgpt_pytorch.evaluation.sheets import Layout, load_font, shorten
from meshgpt_pytorch.mesh import Mesh
from tests.helpers import box_mesh, pyramid_mesh

EMPTY = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long))
LABELS = {"row_labels": ["a box"], "column_labels": ["training mesh", "reconstruction"]}


def tile_at(sheet, layout, group, row, column):
    top, left = layout.row_top(row) + layout.line_height, layout.column_left(group, column)
    return sheet[top : top + layout.tile, left : left + layout.tile]


def test_a_sheet_is_written_and_reads_back(tmp_path, furniture):
    rows = [[mesh, mesh, None] for mesh in furniture[:50:10]]
    path = tmp_path / "out" / "sheet.png"
    sheet = contact_sheet(
        rows,
        row_labels=[f"mesh {index}" for index in range(5)],
        column_labels=["training mesh", "reconstruction", "generated"],
        path=path,
        tile=64,
        row_groups=2,
    )
    with PillowImage.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.size == Layout(64, 3, rows_per_group=3, num_groups=2).size
        assert np.array_equal(np.array(picture), sheet)
    assert list(path.parent.iterdir()) == [path]


def test_each_picture_is_in_its_place_and_to_the_scale_of_its_row(furniture):
    rows = [[furniture[0], furniture[1]], [furniture[2], None], [EMPTY, furniture[3]]]
    sheet = contact_sheet(
        rows,
        row_labels=["one", "two", "three"],
        column_labels=["left", "right"],
        tile=48,
        row_groups=2,
        colors=[BLUE],
    )
    layout = Layout(48, 2, rows_per_group=2, num_groups=2)
    assert sheet.shape == (*layout.size[::-1], 3)
    boxes = [mesh_bounds(mesh) for mesh in furniture[:2]]
    both = (np.minimum(boxes[0][0], boxes[1][0]), np.maximum(boxes[0][1], boxes[1][1]))
    for column in range(2):
        expected = render_mesh(furniture[column], size=48, bounds=both)
        assert np.array_equal(tile_at(sheet, layout, 0, 0, column), expected)
    for place, mesh in (((0, 1, 0), furniture[2]), ((1, 0, 1), furniture[3])):
        expected = render_mesh(mesh, size=48, bounds=mesh_bounds(mesh))
        assert np.array_equal(tile_at(sheet, layout, *place), expected)
    for place in ((0, 1, 1), (1, 0, 0)):
        assert (tile_at(sheet, layout, *place) == PAPER).all()


def test_captions_are_drawn_above_the_pictures():
    rows = [[box_mesh(), None]]
    with_text = contact_sheet(rows, **LABELS)
    without = contact_sheet(rows, row_labels=[""], column_labels=["", ""])
    layout = Layout(192, 2, 1, 1)
    different = (with_text != without).any(axis=(1, 2))
    top = layout.row_top(0)
    assert different[:top].any() and different[top : top + layout.line_height].any()
    assert not different[top + layout.line_height :].any()


def test_more_groups_than_rows_leave_no_empty_group():
    rows = [[box_mesh(), None]]
    assert np.array_equal(
        contact_sheet(rows, **LABELS, row_groups=7), contact_sheet(rows, **LABELS)
    )


def test_long_captions_are_cut_with_an_ellipsis():
    font = load_font(14)
    text = "a chair with a very tall back\nand four legs"
    whole = shorten(text, font, 1000)
    assert whole == "a chair with a very tall back and four legs"
    for width in (60, 100, 200):
        cut = shorten(text, font, width)
        assert cut.endswith("...") and whole.startswith(cut.removesuffix("..."))
        assert font.getlength(cut) <= width
    assert shorten(text, font, 1) == "..."


class CountingFont:
    """A font that counts the characters it measures."""

    def __init__(self, font):
        self.font, self.num_measured = font, 0

    def getlength(self, text):
        self.num_measured += len(text)
        return self.font.getlength(text)


def test_a_caption_of_any_length_is_cut_where_it_must_be_and_measured_little():
    font = load_font(14)
    for text in ("a chair with a very tall back " * 100, "i" * 3000, "WAVE To. " * 300):
        for width in (1, 30, 77, 300):
            end = len(text)
            while end and font.getlength(text[:end] + "...") > width:
                end -= 1
            counting = CountingFont(font)
            assert shorten(text, counting, width) == text[:end].rstrip() + "..."
            assert counting.num_measured <= (width + 4) * (2 + width.bit_length())


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "at least one row of meshes, got none"),
        ([[None, None]] * 2, {}, "name each of the 2 rows, got 1 labels"),
        ([[None]], {}, "each of the 2 column labels, got 1 in row 0; pass None"),
        ([[None, None]], {"tile": 8}, "tile must be at least 32 pixels .* got 8"),
        ([[None, None]], {"row_groups": 0}, "row_groups must be at least 1, got 0"),
        ([[None, None]], {"path": "sheet.jpg"}, "path must end in .png, got 'sheet.jpg'"),
        ([[None, None]], {"colors": []}, "colors must hold at least one color, got none"),
    ],
)
def test_bad_input_is_named(rows, options, message):
    with pytest.raises(ValueError, match=message):
        contact_sheet(rows, **{**LABELS, **options})


def test_without_pillow_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert render_mesh(pyramid_mesh(), size=8).shape == (8, 8, 3)
    with pytest.raises(RuntimeError, match=r"pip install meshgpt-pytorch\[pictures\]"):
        contact_sheet([[None, None]], **LABELS)
