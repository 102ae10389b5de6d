"""Conditional multi-task learning for fastai"""
__version__ = "0.1.0"
