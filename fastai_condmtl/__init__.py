"""Conditional multi-task learning for fastai"""
__version__ = "0.1.0"
from . import evaluate, learner, tune  # hang methods on fastai's Learner, for exported learners too
