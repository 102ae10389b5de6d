"`from fastai_condmtl.vision.all import *`, after `from fastai.vision.all import *`"

from ..all import *
from .cached import CachedImageBlock
from .data import ConditionalDataLoaders
from .learner import conditional_vision_learner
from .points import KeepInside, ScalePoints
import fastai_condmtl.vision.shards  # noqa: F401  ConditionalDataLoaders.from_shards
from .receptive import ReceptiveField, receptive_field
from .show import draw_shapes, draw_tree, plot_top_losses, show_batch, show_results
