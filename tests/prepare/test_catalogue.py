"""Catalogues of furniture libraries."""

import pytest

from meshgpt_pytorch.prepare.captions import words_of_name
from meshgpt_pytorch.prepare.catalogue import parse_catalogue, parse_properties


def test_properties_are_read_as_java_reads_them():
    text = "# c\n! c\n a = 1 \nb:2\nc 3\nd\\ e=4\nf=one\\\n   two\r\ng=\\u00e9\\t\\\\\n\nh\n"
    assert parse_properties(text) == {
        "a": "1 ",
        "b": "2",
        "c": "3",
        "d e": "4",
        "f": "onetwo",
        "g": "é\t\\",
        "h": "",
    }


def test_an_entry_has_its_own_licence_or_that_of_the_library():
    content = b"license=CC0\nmodel#1=/a.obj\nmodel#2=b.obj\nlicense#2=CC-BY\nname#2=B\n"
    first, second = parse_catalogue(content)
    assert first.path == "a.obj" and first.labels == {"licence": "CC0"}
    assert second.path == "b.obj" and second.labels == {"name": "B", "licence": "CC-BY"}
    assert first.rotation is None


@pytest.mark.parametrize("rotation", ["1 0 0", "1 0 0 0 1 0 0 0 one"])
def test_a_rotation_that_is_no_matrix_is_a_problem_of_its_model_alone(rotation):
    content = f"model#1=a.obj\nmodelRotation#1={rotation}\nmodel#2=b.obj\n"
    first, second = parse_catalogue(content.encode())
    assert first.problem == f"modelRotation#1 of the catalogue must be 9 numbers, got {rotation!r}"
    assert second.path == "b.obj" and second.problem is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("officeChair_02", "office chair"),
        ("Sofa-3", "sofa"),
        ("2024", "2024"),
        ("table.v2", "table v2"),
    ],
)
def test_names_become_words(name, words):
    assert words_of_name(name) == words
