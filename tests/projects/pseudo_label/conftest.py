"""Labels of people and of teachers, and names that last for a test."""

import pytest
from relabeled_cases import export_of_five, labelled_images, registering


@pytest.fixture
def exported(tmp_path):
    return export_of_five(tmp_path)


@pytest.fixture
def register():
    with registering() as register:
        yield register


@pytest.fixture
def labelled(register, tmp_path):
    return register("relabeled_people", labelled_images(tmp_path))
