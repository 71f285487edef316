"""Class maps: what they may say, what is wrong with them, and the list of all classes."""

import json

import numpy as np
import pytest

from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label.class_map import (
    ClassMapError,
    identity,
    read_class_map,
    read_parents,
    unify,
)

CLASSES = ("person", "sedan", "coupe", "banana")


@pytest.fixture
def write(tmp_path):
    def write(text, name="map.yaml"):
        (tmp_path / name).write_text(text if isinstance(text, str) else json.dumps(text))
        return tmp_path / name

    return write


FULL = {"person": "human", "sedan": "car", "coupe": "car", "banana": "drop"}
WANTED = {0: "human", 1: "car", 2: "car", 3: None}


@pytest.mark.parametrize("name", ["map.yaml", "map.yml", "map.json"])
@pytest.mark.parametrize("content", [FULL, {"classes": FULL}])
def test_both_forms_in_both_formats(write, name, content):
    assert read_class_map(write(content, name), CLASSES) == WANTED


def test_block_style_with_comments(write):
    text = "# ours\nperson: human\nsedan: car\ncoupe: car\nbanana: drop\n"
    assert read_class_map(write(text), CLASSES) == WANTED


def test_names_that_yaml_takes_for_other_things(write):
    path = write("no: yes\n1: 2.0\nnull: on\n")
    assert read_class_map(path, ("1", "no", "null")) == {0: "2.0", 1: "yes", 2: "on"}


@pytest.mark.parametrize("name", ["map.yaml", "map.json"])
def test_what_is_not_listed(write, name):
    content = {"classes": {"person": "person", "sedan": "car"}}
    with pytest.raises(ClassMapError, match="does not map 'coupe', 'banana': add them"):
        read_class_map(write(content, name), CLASSES)
    path = write(content | {"allow_unmatched": True}, name)
    assert read_class_map(path, CLASSES) == {0: "person", 1: "car", 2: None, 3: None}
    with pytest.raises(ClassMapError, match="does not map"):
        read_class_map(write(content | {"allow_unmatched": False}, name), CLASSES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be a mapping"),
        ("{}", "must be a mapping"),
        ("- person\n- sedan\n", "must be a mapping"),
        ("person", "must be a mapping"),
        ("person: [a", "neither YAML nor JSON"),
        ("person: a\nperson: b\n", "'person' stands there twice"),
        ("classes: {person: a, person: a}\n", "'person' stands there twice"),
        ("persom: a\n", "Unknown class of the teacher 'persom': did you mean 'person'"),
        ("person: [a, b]\n", r"'person' is mapped to \['a', 'b'\]; give one"),
        ("person:\n", "'person' is mapped to ''"),
        ("classes: {person: a}\nallow_unmatched: maybe\n", "must be true or false"),
        ("classes: {person: a}\nallow_unmached: true\n", "did you mean 'allow_unmatched'"),
        ("classes: {person: a}\nallow_unmatched: true\nchildren: [a]\n", "child: parent"),
        ("? [a, b]\n: c\n", "neither YAML nor JSON"),
        ("[" * 5000, "nested too deeply"),
        ("person: ' a'\n", "' a' begins or ends with a blank"),
        ("person: 'drop '\n", "'drop ' begins or ends with a blank"),
        ("classes: {person: a}\nchildren: {a: 'b '}\n", "'b ' begins or ends with a blank"),
        ('classes: {person: a}\nchildren: {" a": b}\n', "' a' begins or ends with a blank"),
    ],
)
def test_wrong_files(write, text, words):
    with pytest.raises(ClassMapError, match=words) as error:
        read_class_map(write(text), CLASSES)
    assert "map.yaml" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"person": "a", "person": "b"}', "'person' stands there twice"),
        ('{"person": 3}', "is mapped to 3"),
        ('{"person": null}', "is mapped to None"),
        ('{"person": ""}', "is mapped to ''"),
        ('{"person": "a\\t"}', r"'a\\t' begins or ends with a blank"),
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "must be a mapping"),
        ("{", "neither YAML nor JSON"),
    ],
)
def test_wrong_json(write, text, words):
    with pytest.raises(ClassMapError, match=words):
        read_class_map(write(text, "map.json"), CLASSES)


def test_no_file(tmp_path):
    with pytest.raises(ClassMapError, match="cannot be read: No such file"):
        read_class_map(tmp_path / "none.yaml", CLASSES)


def test_the_unified_list():
    unified = unify(
        [
            {0: "person", 1: None, 2: "car", 3: "car"},
            identity(("dog", "car", "person")),
            {0: None},
        ]
    )
    assert unified.names == ("person", "car", "dog")
    assert [x.tolist() for x in unified.lookup] == [[0, -1, 1, 1], [2, 1, 0], [-1]]
    assert all(x.dtype == np.int16 for x in unified.lookup)
    assert unified.known_by == ((0, 1), (0, 1), (1,))
    assert unified.known.tolist() == [2, 2, 1]


def test_the_order_of_the_mapping_does_not_matter():
    assert unify([{2: "c", 0: "a", 1: "b"}]).names == ("a", "b", "c")


def test_the_unified_list_in_a_given_order():
    maps = [{0: "person", 1: None, 2: "car", 3: "car"}, identity(("dog", "car", "person"))]
    unified = unify(maps, ["dog", "person", "car"])
    assert unified.names == ("dog", "person", "car")
    assert [x.tolist() for x in unified.lookup] == [[1, -1, 2, 2], [0, 2, 1]]
    assert unified.known_by == ((1,), (0, 1), (0, 1))


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (["car"], "The classes lack 'person', 'dog': they must be"),
        (["dog", "bus", "car", "person"], "The classes name 'bus', which no teacher has: they"),
        (["Car", "dog", "person"], "The classes lack 'car' and name 'Car', which no teacher has"),
        (["sedan", "car", "dog", "person"], "name 'sedan', which no teacher has"),
    ],
)
def test_an_order_of_other_classes(order, words):
    with pytest.raises(ConfigError, match=words):
        unify([{0: "person", 1: "car"}, identity(("dog",))], order)


def test_nothing_left():
    with pytest.raises(ClassMapError, match="drop all classes"):
        unify([{0: None}, {}])


def children(write, *mappings):
    full = {"classes": {"a": "a"}}
    return [write(full | {"children": m}, f"{k}.yaml") for k, m in enumerate(mappings)]


def test_parents_of_all_files(write):
    names = ("vehicle", "car", "van", "dog")
    paths = children(write, {"car": "vehicle"}, {"van": "car", "car": "vehicle"}, {})
    assert read_parents(paths, names) == {1: 0, 2: 1}
    assert read_parents([write("a: a")], names) == {}


@pytest.mark.parametrize(
    ("mappings", "words"),
    [
        ([{"cat": "vehicle"}], "Unknown unified class 'cat'"),
        ([{"car": "vehicles"}], "did you mean 'vehicle'"),
        ([{"van": "car"}, {"van": "vehicle"}], "child of 'vehicle' here and of 'car'"),
        ([{"van": "van"}], "circle: van -> van"),
        ([{"van": "car", "car": "van"}], "circle: van -> car -> van"),
        ([{"vehicle": "van", "van": "car", "car": "van"}], "circle: van -> car -> van"),
    ],
)
def test_wrong_parents(write, mappings, words):
    with pytest.raises(ClassMapError, match=words):
        read_parents(children(write, *mappings), ("vehicle", "car", "van"))
