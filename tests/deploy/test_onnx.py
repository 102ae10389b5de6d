"Graphs and safe files say what the learner says; a stranger's file does nothing but predict."

import json, os
from fastai.torch_core import set_seed
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize, RandomSplitter
from fastai.layers import ConvLayer
from fastai.learner import Learner
from fastai.vision.augment import Resize, RandomResizedCropGPU, aug_transforms
from fastai.vision.data import ImageBlock
from fastai.vision.core import imagenet_stats
from torch import nn
from torchvision.models import squeezenet1_1
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.regression import BoundedRegressionBlock, UnboundedRegressionBlock
from fastai_condmtl.tasks.multi_label import MultiLabelBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.core.conditions import any_of
import fastai_condmtl.deploy.onnx  # noqa: F401  learn.to_onnx
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.learn.heads import Branch
from fastai_condmtl.tasks.count import CountBlock
from fastai_condmtl.tasks.ordinal import OrdinalBlock
from fastai_condmtl.deploy.safe import FORMAT, load_safe, read_header
from fastai_condmtl.core.bound import BoundFlow
from fastai_condmtl.vision.learner import conditional_vision_learner
import fastai_condmtl.vision.data  # noqa: F401
from mutated_files import at_most

IMAGES = np.random.default_rng(0).integers(0, 256, (1000, 16, 16, 3), dtype=np.uint8)


class Picture:
    def __call__(self, r):
        return IMAGES[int(r['i'])]


def table(n=48):
    rng = np.random.default_rng(1)
    df = pd.DataFrame(
        dict(
            i=np.arange(n),
            a=rng.random(n) > 0.4,
            kind=rng.choice(['cat', 'dog', 'cow'], n),
            tags=rng.choice(['p', 'p,q', 'q,r', ''], n),
            x=rng.random(n) * 64,
            z=rng.normal(5, 2, n),
            stars=rng.integers(1, 6, n),
            n=rng.integers(0, 7, n),
            deep=rng.random(n) > 0.5,
        )
    )
    return df


def flow(features=None):
    a, kind, stars, x = (
        BinaryBlock('a', threshold=0.45),
        SingleLabelBlock('kind'),
        OrdinalBlock('stars'),
        BoundedRegressionBlock('x', y_range=(0, 64)),
    )
    tags = MultiLabelBlock('tags', threshold=[0.4, 0.5, 0.6], uses='kind' if features else ()) | kind.isin(
        ['cat', 'dog']
    )
    return Flow(
        'f',
        a,
        kind | a,
        Flow('more', tags, x, UnboundedRegressionBlock('z') | (x > 31), features=features),
        stars | any_of(~a, kind.ne('dog')),
        CountBlock('n') | stars.between(2, 4),
        BinaryBlock('deep', vocab=('no', 'yes')) | (tags.has('q') & (x < 40)),
    )


def body(pretrained=False):
    return nn.Sequential(
        ConvLayer(3, 8, stride=2), ConvLayer(8, 8, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)
    )


def learner(features=None, arch=body, tfms=(), item_tfms=Resize(16), noise=0.3, **kwargs):
    set_seed(0)  # what is drawn must not hang on the tests before
    dls = DataBlock(
        blocks=(ImageBlock, flow(features)),
        get_x=Picture(),
        splitter=RandomSplitter(seed=0),
        item_tfms=item_tfms,
        batch_tfms=[*tfms, Normalize.from_stats(*imagenet_stats, cuda=False)],
    ).dataloaders(table(), bs=16, num_workers=0, device='cpu')
    learn = conditional_vision_learner(
        dls,
        arch,
        pretrained=False,
        normalize=False,
        **({'branches': {'neck': Branch(8, only_needed=True)}} if features else {}),
        **kwargs,
    )
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
    learn.loss_func.thresholds['a'] = torch.tensor([0.52])
    learn.loss_func.temperatures = {'kind': 1.7, 'more.tags': 0.6, 'a': 1.3}
    for n, p in learn.model[1].named_parameters():
        p.data += torch.randn_like(p) * noise  # decisions of all kinds
    return learn


@pytest.fixture(scope='module')
def plain():
    return learner()


@pytest.fixture(scope='module', params=[None, 'neck'], ids=['one head', 'branches'])
def both(request):
    return learner(request.param)


def reference(learn, n=1000):
    "What get_preds says: natural values, activations, reached, and rows where a decision hangs on less than 1e-6"
    from fastai_condmtl.learn.accumulate import every_row

    with learn.no_bar(), every_row(learn):
        acts, _, dec = learn.get_preds(dl=learn.dls.test_dl(list(IMAGES[:n]), num_workers=0), with_decoded=True)
    bound, loss = learn.dls.flow, learn.loss_func
    vals = bound.to_units(dec)[:, 0].as_subclass(torch.Tensor).numpy()
    reached = np.stack(
        [dec[:, 1, s.targets.start].as_subclass(torch.Tensor).numpy() > 0 for s in bound.slices.values()], 1
    )
    near = np.zeros(n, dtype=bool)
    for p, b in bound.tasks.items():
        a = acts[:, bound.slices[p].acts].numpy()
        if b.thresholded:
            near |= (np.abs(a - np.asarray(loss.thresholds[p], dtype=float)) < 1e-6).any(1)
        elif b.n_out > 1:
            top = np.sort(a, 1)
            near |= top[:, -1] - top[:, -2] < 1e-6
            near |= (np.abs(np.cumsum(a[:, ::-1], 1) - 0.5) < 1e-6).any(1)
    for p, edges in {'more.x': (31 / 64, 40 / 64)}.items():
        near |= (np.abs(acts[:, bound.slices[p].acts].numpy() - np.array(edges)) < 1e-6).any(1)
    return vals, acts.numpy(), reached, near


def agree(learn, got, want):
    "Equal, but on rows within 1e-6 of a decision"
    vals, acts, reached, near = want
    assert near.mean() < 0.01
    np.testing.assert_allclose(got[1], acts, atol=2e-5, rtol=1e-4)  # rates of counts are large
    ok, exact = ~near, np.concatenate([np.full(b.n_targets, b.exact) for b in learn.dls.flow.tasks.values()])
    np.testing.assert_array_equal(got[2][ok], reached[ok])
    np.testing.assert_array_equal(got[0][ok][:, exact], vals[ok][:, exact])
    np.testing.assert_allclose(got[0][:, ~exact], vals[:, ~exact], rtol=1e-4, atol=1e-3)
    assert (reached.mean(0) < 1).any()  # conditions are asked


def test_onnxruntime_says_what_get_preds_says(both, tmp_path):
    ort = pytest.importorskip('onnxruntime')
    s = ort.InferenceSession(str(both.to_onnx(tmp_path / 'a.onnx')))
    assert [i.name for i in s.get_inputs()] == ['image'] and [o.name for o in s.get_outputs()] == [
        'values',
        'probabilities',
        'reached',
    ]
    x = IMAGES.transpose(0, 3, 1, 2).copy()
    got = [
        np.concatenate(o) for o in zip(*[s.run(None, {'image': x[i:j]}) for i, j in ((0, 1), (1, 8), (8, 1000))])
    ]  # any number of rows
    assert got[2].dtype == bool
    agree(both, got, reference(both))
    meta = json.loads(s.get_modelmeta().custom_metadata_map['fastai_condmtl'])
    by = {t['path']: t for t in meta['tasks']}
    assert (
        list(by) == both.dls.flow.paths
        and by['kind']['vocab'] == ['cat', 'cow', 'dog']
        and by['a']['thresholds'] == pytest.approx([0.52])
        and by['more.tags']['temperature'] == pytest.approx(0.6)
    )
    assert (
        by['kind']['given'] == 'a'
        and by['more.tags']['values'] == [2, 5]
        and by['more.tags']['vocab'] == ['p', 'q', 'r']
    )
    for k, i in ((0, 3), (1, 17)):  # one by one, as `predict`
        p = both.predict(IMAGES[i])[0]
        told = {q: got[2][i, t['reached']] for q, t in by.items()}
        assert {q for q, v in p.items() if v is not None} == {q for q, v in told.items() if v}
        if told['kind']:
            assert p['kind'] == by['kind']['vocab'][int(got[0][i, by['kind']['values'][0]])]


def test_torch_export(both, tmp_path):
    both.to_exported(tmp_path / 'a.pt2')
    module = torch.export.load(tmp_path / 'a.pt2').module()
    x = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    got = [torch.cat(o).detach().numpy() for o in zip(*[module(x[i:j]) for i, j in ((0, 1), (1, 300), (300, 1000))])]
    agree(both, got, reference(both))


def test_export_changes_nothing(plain):
    before = {k: v.clone() for k, v in plain.model.state_dict().items()}
    d = plain.deployed()
    plain.loss_func.thresholds['a'] = torch.tensor([0.9])
    try:
        assert d.threshold_0 is not None and not any(
            (getattr(d, f'threshold_{k}') == 0.9).any() for k, b in enumerate(d.loss.layout.blocks) if b.thresholded
        )
    finally:
        plain.loss_func.thresholds['a'] = torch.tensor([0.52])
    assert all(torch.equal(v, before[k]) for k, v in plain.model.state_dict().items())


def test_transforms_that_a_graph_does_not_know():
    with pytest.raises(FlowError, match='batch transform RandomResizedCropGPU runs on validation batches'):
        learner(tfms=[RandomResizedCropGPU(16)]).deployed()
    learn = learner()
    learn.dls.add_tfms([Normalize.from_stats([0.5] * 3, [2.0] * 3)], 'after_batch')
    with pytest.raises(FlowError, match='batch transform Normalize runs on validation batches'):
        learn.deployed()  # one would take the place of the other
    learn = learner(tfms=aug_transforms())
    got = [o.detach().numpy() for o in learn.deployed()(torch.from_numpy(IMAGES[:50].transpose(0, 3, 1, 2).copy()))]
    np.testing.assert_allclose(got[1], reference(learn, 50)[1], atol=1e-4, rtol=1e-4)


def test_a_learner_with_one_loader(plain):
    alone = Learner(DataLoaders(plain.dls.train), plain.model, loss_func=plain.loss_func)
    alone.dls.flow = plain.dls.flow
    x = torch.from_numpy(IMAGES[:3].transpose(0, 3, 1, 2).copy())
    assert all(torch.equal(*both) for both in zip(alone.deployed()(x), plain.deployed()(x)))
    assert alone.to_exported() is not None


def test_after_export_sizes_must_be_told(plain, tmp_path):
    from fastai.learner import load_learner

    plain.path = tmp_path
    plain.export('a.pkl')
    loaded = load_learner(tmp_path / 'a.pkl')
    with pytest.raises(FlowError, match='example='):
        loaded.to_exported()
    loaded.to_exported(example=torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


@pytest.mark.trains
@pytest.mark.parametrize('backend', ['aot_eager', 'inductor'])
def test_compiled_training_steps_have_equal_losses(backend):
    if backend == 'inductor' and not any(
        os.access(os.path.join(p, c), os.X_OK) for p in os.environ['PATH'].split(os.pathsep) for c in ('g++', 'clang++')
    ):
        pytest.skip('inductor needs a C++ compiler')
    from copy import deepcopy

    plain = learner(noise=0.0)
    b = [plain.dls.train.one_batch() for _ in range(3)]

    def steps(compiled):
        model, loss = deepcopy(plain.model).train(), plain.dls.flow.loss_func
        for m in model.modules():
            if isinstance(m, nn.Dropout):
                m.p = 0.0
        opt, step = torch.optim.SGD(model.parameters(), 1e-2), lambda x, y: loss(model(x), y)
        if compiled:
            step = torch.compile(step, backend=backend, fullgraph=True)
        res = []
        for x, y in b:
            l = step(x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor))
            opt.zero_grad()
            l.backward()
            opt.step()
            res.append(l.item())
        return res

    np.testing.assert_allclose(steps(True), steps(False), rtol=1e-4)


# Safe files


@pytest.fixture(scope='module')
def named():
    # of so many features more noise gives logits of hundreds, whose rounding is seen beside the tolerance
    return learner('neck', squeezenet1_1, item_tfms=Resize(64), noise=0.05)


@pytest.mark.trains
def test_predictor_says_what_the_learner_says(named, tmp_path):
    learn = named
    f = learn.save_safe(tmp_path / 'a.safetensors')
    p = load_safe(f)
    want = reference(learn, 20)
    acts, dec = p.get_preds(list(IMAGES[:20]), bs=7)
    got = (
        p.flow.to_units(dec)[:, 0].numpy(),
        acts.numpy(),
        np.stack([dec[:, 1, s.targets.start].numpy() > 0 for s in p.flow.slices.values()], 1),
    )
    agree(learn, got, want)
    for i in range(3):
        Image.fromarray(IMAGES[i]).save(tmp_path / f'{i}.png')
        for item in (IMAGES[i], Image.fromarray(IMAGES[i]), tmp_path / f'{i}.png', str(tmp_path / f'{i}.png')):
            one, other = p.predict(item), learn.predict(IMAGES[i])
            assert one[0].keys() == other[0].keys() and {k for k in one[0] if one[0][k] is None} == {
                k for k in other[0] if other[0][k] is None
            }
            torch.testing.assert_close(one[2], other[2].as_subclass(torch.Tensor), atol=2e-5, rtol=0)
    a, b = p.predict_df(list(IMAGES[:8])), learn.predict_df(list(IMAGES[:8]))
    pd.testing.assert_frame_equal(a[['a', 'kind', 'tags', 'deep']], b[['a', 'kind', 'tags', 'deep']])


def test_own_networks_are_handed_over(plain, tmp_path):
    with pytest.warns(UserWarning, match='cannot be made by a name'):
        f = plain.save_safe(tmp_path / 'a.safetensors')
    with pytest.raises(FlowError, match='does not name its network'):
        load_safe(f)
    with pytest.raises(FlowError, match='does not fit the network'):
        load_safe(f, nn.Linear(3, 4))
    from copy import deepcopy

    fresh = deepcopy(plain.model)
    for q in fresh.parameters():
        q.data.zero_()
    agree(plain, _of(load_safe(f, fresh), 50), reference(plain, 50))


def _of(p, n):
    acts, dec = p.get_preds(list(IMAGES[:n]))
    return (
        p.flow.to_units(dec)[:, 0].numpy(),
        acts.numpy(),
        np.stack([dec[:, 1, s.targets.start].numpy() > 0 for s in p.flow.slices.values()], 1),
    )


def test_bound_flow_without_a_table():
    bound = flow().bind(table())
    again = BoundFlow.from_dict(json.loads(json.dumps(bound.to_dict())))
    assert repr(again) == repr(bound)
    torch.testing.assert_close(again.encode(table()), bound.encode(table()))
    d = bound.to_dict()
    for evil in ('encode', '__class__', 'answer', '_x', 'n_out', 'path', 'a-b'):
        with pytest.raises(FlowError, match='cannot have learnt'):
            BoundFlow.from_dict({**d, 'learnt': {**d['learnt'], 'kind': {evil: 1}}})
    with pytest.raises(FlowError, match='what each of the 8 tasks'):
        BoundFlow.from_dict({**d, 'learnt': {}})
    with pytest.raises(FlowError):
        BoundFlow.from_dict({**d, 'learnt': {**d['learnt'], 'kind': {}}})
    with pytest.raises(FlowError):
        BoundFlow.from_dict({**d, 'flow': {**d['flow'], 'tasks': [{'name': 'a', 'block': 'os.system'}]}})


def forge(path, weights=None, head=None, **change):
    "A file like a good one, with changes"
    from safetensors.torch import load_file, save_file

    d = read_header(path)
    d.update(change)
    out = path.with_name('forged.safetensors')
    save_file(
        load_file(path) if weights is None else weights, out, metadata={FORMAT: json.dumps(d) if head is None else head}
    )
    return out


def test_files_of_strangers(named, tmp_path):
    f = named.save_safe(tmp_path / 'a.safetensors')
    d = read_header(f)
    net = d['network']
    bad = [
        dict(network={**net, 'arch': 'os.system'}),
        dict(network={**net, 'arch': '../evil'}),
        dict(network={**net, 'arch': 'get_model'}),
        dict(network={**net, 'args': {'weights': 'https://x'}}),
        dict(network={**net, 'args': {'ps': [1e9]}}),
        dict(network=3),
        dict(network={**net, 'branches': {'neck': [10**9, True]}}),
        dict(network={**net, 'branches': {}}),
        dict(thresholds={'a': ['x']}),
        dict(thresholds={'zz': [0.5]}),
        dict(thresholds={'a': [0.5] * 9}),
        dict(temperatures={'a': -1}),
        dict(temperatures=None),
        dict(pictures={'pixels': {'scale': 0}}),
        dict(
            pictures={
                'resize': {'size': [10**9, 1], 'method': 'crop', 'pad_mode': 'zeros', 'resamples': [2, 0]},
                'pixels': {},
            }
        ),
        dict(pictures='x'),
        dict(thresholds={}),
        dict(thresholds={k: v for k, v in d['thresholds'].items() if k != 'a'}),
        dict(pictures=None),
        dict(pictures={'pixels': {'scale': 1e-300}}),
        *[
            dict(pictures={**d['pictures'], **p})
            for p in (
                dict(resize={**d['pictures']['resize'], 'resamples': [9, 9]}),
                dict(resize={**d['pictures']['resize'], 'pad_mode': 'x'}),
                dict(mode='L'),
                dict(pixels={**d['pictures']['pixels'], 'mean': [0.5, 0.5]}),
                dict(pixels={**d['pictures']['pixels'], 'mean': [0.5] * 3, 'std': [0.0] * 3}),
                dict(pixels={**d['pictures']['pixels'], 'mean': [float('nan')] * 3}),
            )
        ],
        dict(version=2),
        dict(format='x'),
        dict(flow={'flow': 'f'}),
        dict(learnt=[]),
        *[
            dict(network={**net, 'args': wrong})
            for wrong in (dict(lin_ftrs=5), dict(n_in=3.5), dict(ps=2), dict(ps=[]))
        ],
        dict(network={**net, 'args': {'lin_ftrs': [1] * 10**4}}),
        *[
            dict(learnt={**d['learnt'], task: {**d['learnt'][task], name: value}})
            for task, name, value in (
                ('a', 'threshold', 'x'),
                ('kind', 'vocab', {'list': [1]}),
                ('stars', 'vocab', 7),
                ('more.z', 'lo', 'x'),
                ('more.z', 'span', {'list': []}),
                ('n', 'span', 'x'),
                ('more.tags', 'label_delim', 3),
                ('deep', 'vocab', {'tuple': ['no']}),
            )
        ],
    ]
    for change in bad:
        with pytest.raises(FlowError):
            load_safe(forge(f, **change))
    for head in ('[' * 100000, '{"format": ', '9' * 100000, 'null', '[]'):
        with pytest.raises(FlowError):
            load_safe(forge(f, head=head))
    with pytest.raises(FlowError, match='does not fit the network'):
        load_safe(forge(f, weights={'x': torch.zeros(3)}))
    with at_most(2**30):  # a network of 34 GB, and pictures of 800 MB
        with pytest.raises(FlowError, match='does not fit the network'):
            load_safe(forge(f, network={**net, 'args': {**net['args'], 'lin_ftrs': [2**16] * 3}}))
        with pytest.raises(FlowError, match='resizes pictures to'):
            resize = {**d['pictures']['resize'], 'size': [2**14, 2**14]}
            load_safe(forge(f, pictures={**d['pictures'], 'resize': resize}))
    import pickle

    (tmp_path / 'pickle.safetensors').write_bytes(pickle.dumps([1, 2]))
    (tmp_path / 'short.safetensors').write_bytes(f.read_bytes()[:-100])
    (tmp_path / 'empty.safetensors').write_bytes(b'')
    for name in ('pickle', 'short', 'empty'):
        with pytest.raises(FlowError):
            load_safe(tmp_path / f'{name}.safetensors')
    with pytest.raises(FlowError, match='there is no file'):
        load_safe(tmp_path)


def test_loading_never_unpickles(named, tmp_path, monkeypatch):
    import pickle

    f = named.save_safe(tmp_path / 'a.safetensors')

    def no(*args, **kwargs):
        raise AssertionError('unpickled')

    for m, n in ((pickle, 'load'), (pickle, 'loads'), (pickle, 'Unpickler'), (torch, 'load')):
        monkeypatch.setattr(m, n, no)
    load_safe(f).predict(IMAGES[0])


def test_gray_pictures_and_those_of_16_bits(tmp_path):
    "Of whatever make a picture is, the predictor reads it as the learner does"
    from fastai.vision.core import PILImageBW
    from fastai_condmtl.vision.data import ConditionalDataLoaders

    rng = np.random.default_rng(0)
    for i in range(24):
        Image.fromarray(
            rng.integers(0, 65536, (40, 48), dtype=np.uint16)
            if i % 2
            else rng.integers(0, 256, (40, 48), dtype=np.uint8)
        ).save(tmp_path / f'{i}.png')
    df = pd.DataFrame(dict(img=[f'{i}.png' for i in range(24)], a=[0, 1] * 12))
    for cls, n_in in ((PILImageBW, 1), (None, 3)):
        dls = ConditionalDataLoaders.from_df(
            df,
            BinaryBlock('a'),
            path=tmp_path,
            fn_col='img',
            bs=8,
            num_workers=0,
            seed=0,
            item_tfms=Resize(64),
            **({'img_cls': cls} if cls else {}),
        )
        learn = conditional_vision_learner(dls, squeezenet1_1, pretrained=False, normalize=False, n_in=n_in)
        p = load_safe(learn.save_safe(tmp_path / 'a.safetensors'))
        for i in (0, 1):
            with learn.no_bar():
                want = learn.predict(tmp_path / f'{i}.png')[2].as_subclass(torch.Tensor)
            for item in (
                tmp_path / f'{i}.png',
                Image.open(tmp_path / f'{i}.png'),
                (tmp_path / f'{i}.png').read_bytes(),
                np.array(Image.open(tmp_path / f'{i}.png')),
            ):
                torch.testing.assert_close(p.predict(item)[2], want, atol=1e-5, rtol=0)
