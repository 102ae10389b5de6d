"""Conditional multi-task learning for fastai"""
__version__ = "0.1.0"
from . import audit, calibrate, evaluate, flow_json, grow, learner, partial_training, table, tune  # hang methods on flows and on fastai's Learner, for exported learners too
