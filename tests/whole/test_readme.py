"README.md is made from the index notebook, and its code runs."

import importlib.util, json, re, warnings
import matplotlib.pyplot as plt
import numpy as np, pytest, torch


def test_in_step_with_the_index(root):
    spec = importlib.util.spec_from_file_location('readme', root / 'docs' / 'readme.py')
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert (root / 'README.md').read_text(encoding='utf-8') == made.readme(root), 'run python docs/readme.py'


def test_code_runs(root, tmp_path, capsys):
    "Word for word, but for a smaller network without downloaded weights and one epoch instead of three."
    from fastai_condmtl.datasets.synthetic import save_scenes

    code = '\n'.join(re.findall(r'```python\n(.*?)```', (root / 'README.md').read_text(encoding='utf-8'), re.S))
    for old, new in {
        'conditional_vision_learner(dls, resnet18)': 'conditional_vision_learner(dls, squeezenet1_1, pretrained=False)',
        'fine_tune(3)': 'fine_tune(1)',
        "fn_col='img',": "fn_col='img', num_workers=0,",
        "'security.pkl'": f"{str(tmp_path / 'security.pkl')!r}",
    }.items():
        assert old in code, old
        code = code.replace(old, new)
    df = save_scenes(tmp_path, n=80)
    ns = dict(df=df, path=tmp_path, img=tmp_path / df.img[0])
    exec(code, ns)
    assert (tmp_path / 'security.pkl').exists() and len(plt.get_fignums())
    plt.close('all')
    assert list(ns['flow'].tasks) == [
        ns[n] for n in ('camera_blocked', 'door_open', 'door_locked', 'person_present', 'person')
    ]


BOXES = {o: [f'{o}_{c}' for c in ('x1', 'y1', 'w', 'h')] for o in ('face', 'body')}


def minute(root, df, path):
    "The first of the README's code, up to the flow, and what it names"
    code = re.findall(r'```python\n(.*?)```', (root / 'README.md').read_text(encoding='utf-8'), re.S)[0]
    ns = dict(df=df, path=path)
    exec(code, ns)
    return ns


def painted(path, obj, n=60, size=64):
    "Scenes with a box of `obj`, which is full of the only colour in the picture; their table"
    from fastai_condmtl.datasets.synthetic import save_pictures, security_scenes

    ims, df = security_scenes(n=n, missing=0.0, size=size)
    keep = df[BOXES[obj]].notna().all(axis=1)
    ims, df = ims[keep.to_numpy()], df[keep].reset_index(drop=True)
    ims = ims.mean(-1, keepdims=True).astype(np.uint8).repeat(3, -1)  # all else is gray
    for im, (x, y, w, h) in zip(ims, df[BOXES[obj]].astype(int).to_numpy()):
        im[y : y + h, x : x + w] = 255, 0, 255
    return save_pictures(path, ims, df)


def painted_boxes(x):
    "Left, top, width and height of what has that colour in each picture of a batch, whatever was done to its light"
    res = []
    for im in x.as_subclass(torch.Tensor).cpu():
        ys, xs = ((im[0].minimum(im[2]) - im[1]) > 0.45).nonzero(as_tuple=True)
        res.append([float(v) for v in (xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1)])
    return np.array(res)


def decoded(dls, b, name):
    return np.array([sample[1][name] for sample in dls.train.decode_batch(b, max_n=len(b[0]))], dtype=float)


def overlap(a, b):
    "Intersection over union of boxes `(n, 4)`, each left, top, width and height"
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    both = (high - low).clip(0).prod(1)
    return both / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - both)


@pytest.mark.parametrize('obj', list(BOXES))
def test_boxes_of_the_minute_follow_a_flip(root, tmp_path, obj):
    "All pictures flipped: each box is the one of the table, mirrored by hand, and lies on the picture's own pixels"
    df = painted(tmp_path, obj)
    flow = minute(root, df, tmp_path)['flow']
    from fastai.vision.all import Flip, Resize
    from fastai_condmtl.vision.all import ConditionalDataLoaders

    dls = ConditionalDataLoaders.from_df(
        df,
        flow,
        path=tmp_path,
        fn_col='img',
        bs=len(df),
        num_workers=0,
        splitter=lambda d: (range(len(d)), []),
        item_tfms=Resize(64),
        batch_tfms=Flip(p=1.0),
    )
    b = dls.train.new(shuffle=False).one_batch()
    want = df[BOXES[obj]].to_numpy(dtype=float)
    want[:, 0] = 64 - want[:, 0] - want[:, 2]
    got = decoded(dls, b, f'{obj}_box')
    np.testing.assert_allclose(got, want, atol=1e-3)
    np.testing.assert_allclose(painted_boxes(b[0]), want, atol=1.01)


@pytest.mark.parametrize('obj', list(BOXES))
def test_the_minute_is_right_under_its_transforms(root, tmp_path, obj):
    "Under `aug_transforms()` boxes lie on the pixels of what they bound; those of four numbers of their own would not"
    df = painted(tmp_path, obj)
    ns = minute(root, df, tmp_path)
    from fastai.vision.all import Resize, aug_transforms
    from fastai_condmtl.datasets.synthetic import security_flow
    from fastai_condmtl.vision.all import ConditionalDataLoaders

    torch.manual_seed(0)
    args = dict(
        path=tmp_path,
        fn_col='img',
        bs=len(df),
        num_workers=0,
        splitter=lambda d: (range(len(d)), []),
        item_tfms=Resize(64),
        batch_tfms=aug_transforms(),
    )
    dls = ConditionalDataLoaders.from_df(df, ns['flow'], **args)
    b = dls.train.one_batch()
    assert overlap(decoded(dls, b, f'{obj}_box'), painted_boxes(b[0])).min() > 0.6
    with pytest.warns(UserWarning, match='plain numbers'):
        dls = ConditionalDataLoaders.from_df(df, security_flow(), **args)
    b = dls.train.one_batch()
    assert overlap(np.stack([decoded(dls, b, c) for c in BOXES[obj]], 1), painted_boxes(b[0])).min() < 0.3


def test_the_difference_runs(root, tmp_path):
    """What the diff against stock fastai makes, but for a smaller network and fewer epochs; nobody warns of
    flips, and the flow is that of the minute"""
    from fastai_condmtl.datasets.synthetic import save_scenes

    df = save_scenes(tmp_path / 'images', n=60)
    ns = minute(root, df, tmp_path)
    (diff,) = re.findall(r'```diff\n(.*?)```', (root / 'README.md').read_text(encoding='utf-8'), re.S)
    assert 'batch_tfms=aug_transforms()' in diff
    code = '\n'.join(l[2:] for l in diff.splitlines() if not l.startswith('-'))
    for old, new in {
        'vision_learner(dls, resnet18)': 'vision_learner(dls, squeezenet1_1, pretrained=False)',
        'fine_tune(3)': 'fine_tune(1)',
        'dataloaders(df)': 'dataloaders(df, bs=16, num_workers=0)',
    }.items():
        assert old in code, old
        code = code.replace(old, new)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        exec(code, ns)
    assert not [w for w in seen if 'flip' in str(w.message).lower() or 'plain numbers' in str(w.message)]
    res = ns['learn'].evaluate()
    assert {'person_regression.face_regression.face_box', 'person_regression.body_regression.body_box'} <= set(
        res.task_path[res.metric_name == 'iou']
    )


def test_the_table_names_rows_of_the_demo(root):
    "Each row of the overview's table is a task of the demo's flow"
    from fastai_condmtl.datasets.synthetic import security_flow, security_scenes

    cells = json.loads((root / 'nbs' / 'guide' / 'overview.ipynb').read_text(encoding='utf-8'))['cells']
    text = ''.join(line for cell in cells for line in cell['source'])
    named = re.findall(r'^\| ([a-z_0-9.]+) \| (?:accuracy|mae|iou|f1_score)', text, re.M)
    paths = security_flow().bind(security_scenes(n=40)[1]).paths
    assert len(named) == 7 and set(named) <= set(paths)


def test_two_screens(root):
    "Short enough to be read at once; no line of code runs out of its column"
    text = (root / 'README.md').read_text(encoding='utf-8')
    assert len(text.splitlines()) <= 125
    code = re.findall(r'```\w+\n(.*?)```', text, re.S)
    assert len(code) >= 5
    assert max(len(line) for block in code for line in block.splitlines()) <= 90
