"`from fastai_condmtl.text.all import *`, after `from fastai.text.all import *`"

from ..all import *
from .data import ConditionalTextDataLoaders
from .learner import conditional_text_learner
from .lm import ConditionalTextModel, conditional_lm_learner
from .masks import MaskedLMBlock, MaskTokens
from .show import plot_top_losses, readable_text, show_batch, show_results
from .transformer import TransformerFeatures, conditional_transformer_learner
from .transformer_data import ConditionalTransformerDataLoaders, TransformerTextBlock
from .transformer_safe import TextPredictor
