"""`learn.predict` of one picture against the bare network with decoding; `predict_df` of 2,000 against a bare loop over
the same files, batches and workers"""

import sys, tempfile
from pathlib import Path
import numpy as np, pandas as pd, torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from fastai.vision.all import Normalize, Resize, imagenet_stats, set_seed
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.datasets.synthetic import save_scenes, security_flow
from fastai_condmtl.learn import learner as learner_module
from fastai_condmtl.tasks.keypoints import KeypointsBlock
from fastai_condmtl.tools.demo import head, trunk
from fastai_condmtl.vision.all import ConditionalDataLoaders, conditional_vision_learner
from timing import alternate

SIZE, PIXELS = 64, 128
MEAN, STD = (torch.tensor(x)[:, None, None] for x in imagenet_stats)


class Pictures(Dataset):
    "What somebody writes by hand: a file becomes a tensor of bytes"

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        picture = Image.open(self.files[i]).convert('RGB').resize((SIZE, SIZE), Image.BILINEAR)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def make(df, flow, path, workers):
    "A learner of pictures of 128 pixels, resized to 64"
    dls = ConditionalDataLoaders.from_df(
        df,
        flow,
        path=path,
        fn_col='img',
        seed=0,
        num_workers=workers,
        item_tfms=Resize(SIZE, method='squish'),
        batch_tfms=Normalize.from_stats(*imagenet_stats),
    )
    return conditional_vision_learner(dls, trunk, pretrained=False, normalize=False, custom_head=head(dls.c, SIZE))


@torch.no_grad()
def bare_logits(model, pictures):
    "Bytes `(n, 3, H, W)` through the network"
    return model((pictures.float().div_(255) - MEAN) / STD)


def one(learn, files, what):
    "One picture: ours, fastai's way, and the network with decoding"
    state, model = dict(i=0), learn.model.eval()
    pictures = Pictures(files)

    def next_file():
        state['i'] = (state['i'] + 1) % len(files)
        return state['i']

    def by_fastai():
        ask = learner_module.why_not_direct
        learner_module.why_not_direct = lambda learn: 'asked for'
        try:
            learn.predict(files[next_file()])
        finally:
            learner_module.why_not_direct = ask

    bare = lambda: bare_logits(model, pictures[next_file()][None])
    with learn.no_bar():
        (t0, t1, t2), (_, direct, stock) = alternate(
            bare, lambda: learn.predict(files[next_file()]), by_fastai, rounds=60, inner=3, warmup=3
        )
    print(
        f"one picture, {what}: network with decoding {t0 * 1e3:.2f} ms; learn.predict {t1 * 1e3:.2f} ms, ratio "
        f"{direct:.2f} (promised <= 2.5); fastai's way {t2 * 1e3:.2f} ms, ratio {stock:.2f}"
    )


def many(learn, df, files, workers, what, rounds=7):
    "A table of predictions, and the probabilities of a bare loop"
    model = learn.model.eval()

    def bare():
        loader = DataLoader(Pictures(files), batch_size=64, num_workers=workers)
        return torch.cat([bare_logits(model, batch).sigmoid() for batch in loader])

    with learn.no_bar():
        (t0, t1), (_, ratio) = alternate(bare, lambda: learn.predict_df(df), rounds=rounds, inner=1, warmup=1)
    print(
        f"predict_df of {len(df):,}, {what}, {workers} workers: bare loop {t0:.2f} s; ours {t1:.2f} s, ratio "
        f"{ratio:.3f} (promised <= 1.10)"
    )


if __name__ == '__main__':
    torch.set_num_threads(1)
    set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        n = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
        df = save_scenes(Path(folder), n=n, size=PIXELS)
        rng = np.random.default_rng(0)
        df = pd.concat([df, pd.DataFrame(rng.uniform(5, 120, (len(df), 4)), columns=['ax', 'ay', 'bx', 'by'])], axis=1)
        files = [Path(folder) / name for name in df['img']]
        points = Flow('f', security_flow(PIXELS), KeypointsBlock('points', cols=['ax', 'ay', 'bx', 'by']))
        for what, flow in (('labels', security_flow(PIXELS)), ('labels and points', points)):
            one(make(df, flow, folder, 0), files[:200], what)
            for workers in (0, 1):
                many(make(df, flow, folder, workers), df, files, workers, what)
