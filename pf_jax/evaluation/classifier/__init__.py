"""A classifier of short sounds: the features and probabilities that FID and IS are made of."""

from pf_jax.evaluation.classifier.classifier import Classifier as Classifier
from pf_jax.evaluation.classifier.classifier import load_classifier as load_classifier
from pf_jax.evaluation.classifier.config import AugmentationConfig as AugmentationConfig
from pf_jax.evaluation.classifier.config import ClassifierConfig as ClassifierConfig
from pf_jax.evaluation.classifier.resnext import ResNeXt as ResNeXt
from pf_jax.evaluation.classifier.resnext import ResNeXtConfig as ResNeXtConfig
from pf_jax.evaluation.classifier.spectrogram import mel_spectrogram as mel_spectrogram
from pf_jax.evaluation.classifier.training import train_classifier as train_classifier
