"""Data sets, mappers and their checks; importing it registers the built-in data sets."""

from .builtin import register_shapes
from .mappers import AnnotatedTestMapper, RobustDatasetMapper, build_annotated_test_mapper
from .requirements import check_datasets, check_num_classes
from .shapes import ensure_split
from .subsets import register_subset, subset

__all__ = [
    "AnnotatedTestMapper",
    "RobustDatasetMapper",
    "build_annotated_test_mapper",
    "check_datasets",
    "check_num_classes",
    "ensure_split",
    "register_shapes",
    "register_subset",
    "subset",
]
