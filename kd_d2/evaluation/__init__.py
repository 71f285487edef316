"""Metrics and evaluators that Detectron2 does not have."""

from .crowdhuman import CrowdHumanEvaluator

__all__ = ["CrowdHumanEvaluator"]
