"Tables of labels, their splits and samples"


def __getattr__(name):
    "Version 0.1.0 had one module of this name, which the files of its `learn.export` ask for"
    if name in (
        'ConditionalLists',
        'EncodedRows',
        'FlowTransform',
    ):  # pickle and fastai swallow texts of import and attribute errors
        from ..core.errors import FlowError

        raise FlowError(
            f"fastai_condmtl.data.{name}: if a file of learn.export asks for it, version 0.1.0 wrote it, whose modules "
            "stood elsewhere: load it there and write it by learn.save_safe, which this version reads"
        )
    raise AttributeError(f"module 'fastai_condmtl.data' has no attribute {name!r}")
