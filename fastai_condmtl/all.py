"Everything that does not depend on the kind of input: `from fastai_condmtl.all import *`, after fastai's"
from .core.extras import MissingExtra
from .conditions import Condition, FlowWarning, any_of, task
from .blocks import *
from .points import Frame
from .flow import Flow, FlowError
from .target import FlowPrediction, TensorConditional
from .loss.conditional import ConditionalLoss
from .metrics import TaskMetric
from .data import FlowTransform, StratifiedSplitter, stratified_folds
from .masks import SegmentationBlock, mask_facts
from .core.columns import read_list
from .draw import balanced_weights
from .sources import SourceTfms, concat_sources
from .thresholds import best_threshold, cross_fit
from .callback.thresholds import ThresholdSearch
from .explain import FlowTree
from .ranks import alone
from .heads import Branch, ConditionalHead, conditional_head
from .callback.balance import TaskBalance
from .callback.gradients import GradientCosine
from .callback.parallel import BalancedParallel, BalancedTrainer
from .callback.resume import Checkpoint
from .callback.schedule import TaskLR, WeightSchedule
from .equip import equip
from .learn.guard import FlowGuard, before_fit_check
from .learn import reading, targets # noqa: F401  learn.dls keeps the reading of its network; one flow is the target
from .learn import loaders as _loaders  # arguments of dls.new and dls.test_dl
from .learn.sides import check_sides
from .learn.stock import restore_stock, stock_methods
from .evaluate import Evaluation
from .interpret import ConditionalInterpretation
from .table import Cleaner
from .callback.track import ConditionalTensorBoard, ConditionalWandb
from .flow_json import register_block
from .guess import guess_flow
from .export import Deployed
from .safe import Predictor, load_safe
