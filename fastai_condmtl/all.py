"Everything that does not depend on the kind of input: `from fastai_condmtl.all import *`, after fastai's"

from .core.extras import MissingExtra
from .core.conditions import Condition, any_of, task
from .core.errors import FlowWarning
from .tasks.all import *
from .core.geometry import Frame
from .core.flow import Flow
from .core.errors import FlowError
from .core.prediction import FlowPrediction
from .core.target import TensorConditional
from .loss.conditional import ConditionalLoss
from .evaluate.metrics import TaskMetric
from .data.target_block import FlowTransform
from .data.packed import PackedLabels
from .data.groups import GroupSplitter
from .data.split import StratifiedSplitter, stratified_folds
from .data.mask_facts import SegmentationBlock, mask_facts
from .core.cell_text import read_list
from .data.sampling import balanced_weights
from .data.source_tfms import SourceTfms
from .data.sources import concat_sources
from .tasks.thresholds import best_threshold, cross_fit
from .callback.thresholds import ThresholdSearch
from .core.prediction_tree import FlowTree
from .learn.ranks import without_ranks
from .learn.folds import Folds, fit_folds
from .learn.heads import Branch, ConditionalHead, conditional_head
from .callback.balance import TaskBalance
from .callback.early_stopping import EarlyStoppingTasks, SkillRecorder
from .callback.fits import FitCallback
from .callback.gradients import GradientCosine
from .callback.parallel import BalancedParallel, BalancedTrainer
from .callback.resume import Checkpoint
from .callback.schedule import TaskLR, WeightSchedule
from .callback.validation_rows import ValidationRows
from .check_block import check_block
from .equip import equip
from .learn.guard import FlowGuard, before_fit_check
from fastai_condmtl.learn import reading
from fastai_condmtl.learn import targets
from .learn import loaders as _loaders  # arguments of dls.new and dls.test_dl
from .learn.sides import check_sides
from .core.stock import restore_stock, stock_methods
from .evaluate.average import average_folds
from .evaluate.compare import compare
from .evaluate.classification_report import ClassificationReport
from .evaluate.evaluation import Evaluation
from .evaluate.interpret import ConditionalInterpretation
from .evaluate.label_cleaning import Cleaner
from .callback.tracking import ConditionalTensorBoard, ConditionalWandb
from .core.block_json import register_block
from .data.guess import guess_flow
from .data.label_studio import read_label_studio
from .deploy.onnx import Deployed
from .deploy.predictor import Predictor
from .deploy.safe import load_safe
from .deploy.scorer import Scorer
import fastai_condmtl.core.flow_json  # noqa: F401  methods of flows and of learners
import fastai_condmtl.core.marginals  # noqa: F401
import fastai_condmtl.core.plot  # noqa: F401
import fastai_condmtl.core.prediction_tree  # noqa: F401
import fastai_condmtl.data.audit  # noqa: F401
import fastai_condmtl.data.redcap  # noqa: F401
import fastai_condmtl.data.sampling  # noqa: F401
import fastai_condmtl.data.split  # noqa: F401
import fastai_condmtl.data.steps  # noqa: F401  how loaders read their items
import fastai_condmtl.data.xlsform  # noqa: F401
import fastai_condmtl.learn.saving  # noqa: F401
import fastai_condmtl.learn.learner  # noqa: F401
import fastai_condmtl.learn.ranks  # noqa: F401
import fastai_condmtl.learn.explain  # noqa: F401
import fastai_condmtl.learn.marginals  # noqa: F401
import fastai_condmtl.learn.start  # noqa: F401
import fastai_condmtl.learn.partial  # noqa: F401
import fastai_condmtl.learn.transfer  # noqa: F401
import fastai_condmtl.evaluate.evaluation  # noqa: F401
import fastai_condmtl.evaluate.tune  # noqa: F401
import fastai_condmtl.evaluate.calibrate  # noqa: F401
import fastai_condmtl.evaluate.conformal  # noqa: F401
import fastai_condmtl.evaluate.label_cleaning  # noqa: F401
import fastai_condmtl.evaluate.label_next  # noqa: F401
import fastai_condmtl.evaluate.report  # noqa: F401
import fastai_condmtl.deploy.onnx  # noqa: F401
import fastai_condmtl.deploy.safe  # noqa: F401
from .learn.saving import travels as _travels


@_travels
class Methods:
    "Goes into the file of an exported learner: whoever loads it has all methods of flows and learners"
