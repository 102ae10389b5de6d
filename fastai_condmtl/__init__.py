"""Conditional multi-task learning for fastai"""

import sys

__version__ = "0.2.0"

# Modules of version 0.1.0 that stand in rooms now: pickles of that version name them
_MOVED = (
    'app audit balance base binary blocks calibrate callback.track callback.tracked carry classes cli cli_run '
    'condition_text conditions demo distributed draw explain export faces files flow flow_json grow guess heads '
    'imbalance interpret learner losses machines marginals masks metrics page partial_training plot points predictor '
    'ranks readers regression reviews safe scores seen sources synthetic table target thresholds tune whole_space'
).split()


class _Moved:
    "Tells who imports a module of version 0.1.0, such as a pickle of then, what to do"

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.startswith(f'{__name__}.') and name[len(__name__) + 1 :] in _MOVED:
            raise ModuleNotFoundError(_why_moved(name), name=name)


def _why_moved(name):
    return (
        f"{name} is a module of version 0.1.0, which stands elsewhere now: import from fastai_condmtl.all (or "
        "vision.all, tabular.all, text.all). If a command asks for it, it is of an older installation: install the "
        "package again. If a pickle asks for it, such as a file of learn.export, load it with "
        "version 0.1.0 and write it by learn.save_safe, flow.to_json or learn.save_thresholds, which this version reads"
    )


sys.meta_path.append(_Moved)
