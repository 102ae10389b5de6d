"`from fastai_condmtl.tabular.all import *`, after `from fastai.tabular.all import *`"

from ..all import *
from .core import ConditionalTabular, FillGaps
from .data import ConditionalTabularDataLoaders
from .estimators import fit_estimators
import fastai_condmtl.tabular.fold_inputs  # noqa: F401  tables of folds that are averaged
from .learner import conditional_tabular_learner
from .members import TableNetwork
from .piecewise import PiecewiseNumbers
from .show import rows_table, show_batch, show_results
from .rows import JoinedModel, RowModel, TabularRowBlock, TensorRow, conditional_image_tabular_learner
