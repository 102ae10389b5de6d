"""Conditional multi-task learning for fastai"""
__version__ = "0.1.0"
from . import learner  # hangs predict_df and the like on fastai's Learner, for exported learners too
