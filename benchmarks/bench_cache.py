"""A training epoch with a filled cache against a PyTorch loop written by hand over pictures in memory: same network,
augmentation and optimizer, 64 px from files of 128 px; and what reading one picture costs"""

import contextlib, io, math, random, statistics, tempfile, time
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from fastai.vision.all import (
    Flip,
    Learner,
    Normalize,
    OptimWrapper,
    RandomResizedCrop,
    imagenet_stats,
    set_seed,
)
from fastai_condmtl.all import equip
from fastai_condmtl.tools.demo import head, trunk
from fastai_condmtl.vision.all import BinaryBlock, ConditionalDataLoaders, Flow, task

SIZE, N, BATCH, TASKS, SCALE = 64, 512, 64, 8, 0.5


def save_photos(folder):
    "JPEGs of 128 px, and labels: `a` for all rows, seven more where `a` is yes"
    rng, rows = np.random.default_rng(0), []
    for i in range(N + 1):
        coarse = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((128, 128), Image.BICUBIC).save(folder / f'{i}.jpg')
        labels = rng.integers(0, 2, TASKS)
        rows.append([f'{i}.jpg', labels[0], *(labels[1:] if labels[0] else [None] * (TASKS - 1))])
    return pd.DataFrame(rows, columns=['img', 'a', *(f'b{k}' for k in range(1, TASKS))])


def network():
    torch.manual_seed(0)
    return nn.Sequential(*list(trunk())[:-3], head(TASKS, SIZE))


class InMemory(torch.utils.data.Dataset):
    "Small pictures in memory; each is cut out at random and resized"

    def __init__(self, pictures, labels):
        self.pictures, self.labels = pictures, labels

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, i):
        picture = Image.fromarray(self.pictures[i])
        width, height = picture.size
        box = (0, 0, width, height)
        for _ in range(10):
            area = random.uniform(SCALE, 1) * width * height
            ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if w <= width and h <= height:
                left, top = random.randint(0, width - w), random.randint(0, height - h)
                box = (left, top, left + w, top + h)
                break
        picture = picture.crop(box).resize((SIZE, SIZE), Image.BILINEAR)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1), self.labels[i]


class ByHand:
    "The loop by hand: a loader, a network and its optimizer"

    def __init__(self, pictures, packed):
        self.loader = torch.utils.data.DataLoader(
            InMemory(pictures, packed), batch_size=BATCH, shuffle=True, drop_last=True
        )
        self.model = network()
        self.opt = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.mean, self.std = (torch.tensor(s).view(1, 3, 1, 1) for s in imagenet_stats)

    def epoch(self):
        self.model.train()
        for x, y in self.loader:
            x = (x.float() / 255 - self.mean) / self.std
            turned = torch.where((torch.rand(len(x)) < 0.5)[:, None, None, None], x.flip(-1), x)
            value, mask = y.unbind(1)
            cells = F.binary_cross_entropy_with_logits(self.model(turned), value, reduction='none') * mask
            loss = (cells.sum(0) / mask.sum(0).clamp(min=1)).sum()
            loss.backward()
            self.opt.step()
            self.opt.zero_grad()
            loss.item()


def of_processor(f):
    "Seconds of the processor"
    start = time.process_time()
    f()
    return time.process_time() - start


if __name__ == '__main__':
    torch.set_num_threads(1)
    set_seed(0)
    with tempfile.TemporaryDirectory() as d:
        path = Path(d)
        df = save_photos(path)
        flow = Flow('f', BinaryBlock('a'), *(BinaryBlock(f'b{k}') | task('a') for k in range(1, TASKS)))
        common = dict(
            valid_idx=[N],
            bs=BATCH,
            num_workers=0,
            item_tfms=RandomResizedCrop(SIZE, min_scale=SCALE),
            batch_tfms=[Flip(), Normalize.from_stats(*imagenet_stats)],
        )
        opt = partial(OptimWrapper, opt=torch.optim.AdamW)
        learners = {}
        for name, cache in dict(cache=True, files=None).items():
            with contextlib.redirect_stdout(io.StringIO()):  # where the cache stands, and its bar
                dls = ConditionalDataLoaders.from_df(df, flow, path, cache=cache, **common)
            learners[name] = equip(Learner(dls, network(), opt_func=opt), metrics=None, tune=None)
        dls = learners['cache'].dls
        opened = dls.train_ds.tls[0].tfms.fs[-1]
        pictures = [np.asarray(opened(path / name)) for name in df.img[:N]]
        packed = torch.stack([torch.Tensor(dls.train_ds[i][1]) for i in range(N)])
        hand = ByHand(pictures, packed)

        def ours(learn):
            def f():
                with learn.no_bar(), learn.no_logging():
                    learn.fit(1, 1e-3)

            return f

        sides = dict(hand=hand.epoch, cache=ours(learners['cache']), files=ours(learners['files']))
        times = {name: [] for name in sides}
        for r in range(7):
            for name in list(sides)[r % 3 :] + list(sides)[: r % 3]:
                seconds = of_processor(sides[name])
                if r:
                    times[name].append(seconds)
        ratios = {k: statistics.median(b / a for a, b in zip(times['hand'], t)) for k, t in times.items()}
        med = {k: statistics.median(t) for k, t in times.items()}
        print(
            f"training epoch, {N} pictures, seconds of the processor: by hand, in memory {med['hand']:.2f}; with a "
            f"cache {med['cache']:.2f}, ratio {ratios['cache']:.3f} (promised <= 1.15); from files {med['files']:.2f}, "
            f"ratio {ratios['files']:.3f}"
        )
        plain = learners['files'].dls.train_ds.tls[0].tfms.fs[-1]
        files = [str(path / name) for name in df.img[:N]]
        reads = [lambda: [opened(fn) for fn in files], lambda: [plain(fn) for fn in files]]
        cached, decoded = (statistics.median(of_processor(f) / N * 1e3 for _ in range(7)) for f in reads)
        print(f"reading one picture: from the cache {cached:.3f} ms, decoded {decoded:.3f} ms")
