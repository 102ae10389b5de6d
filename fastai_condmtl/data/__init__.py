"Tables of labels, their splits and samples"

from .. import _why_moved


def __getattr__(name):
    "Version 0.1.0 had one module of this name, which the files of its `learn.export` ask for"
    if name in ('ConditionalLists', 'EncodedRows', 'FlowTransform'):
        from ..core.errors import FlowError  # pickle and fastai swallow texts of attribute errors

        raise FlowError(_why_moved(f'fastai_condmtl.data.{name}'))
    raise AttributeError(f"module 'fastai_condmtl.data' has no attribute {name!r}")
