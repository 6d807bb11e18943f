"""The models that excise can build: what they have in common, and the architectures by name."""

from excise.common.models.architectures import build_model, known_models
from excise.common.models.classifier import Classifier, ModelSpec, Normalise

__all__ = ["Classifier", "ModelSpec", "Normalise", "build_model", "known_models"]
