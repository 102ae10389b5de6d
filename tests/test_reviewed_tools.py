"Faults that a review of files, commands, tables and pictures found"
import json
import pandas as pd, pytest, torch
from fastai.data.all import DataBlock, IndexSplitter, Transform, TransformBlock
from fastai.learner import Learner
from torch import nn
from fastai_condmtl.all import *
from fastai_condmtl.cli import condmtl_train
from fastai_condmtl.cli_run import condmtl_evaluate
from fastai_condmtl.synthetic import save_scenes

class No(nn.Module):
    "Says no to everything"
    def __init__(self, c): super().__init__(); self.w = nn.Parameter(torch.full((c,), -5.))
    def forward(self, x): return self.w.expand(len(x), -1)

class One(Transform):
    def __call__(self, r, **kwargs): return torch.ones(1)

@pytest.mark.parametrize('infer', [True, 'train'])
def test_what_labels_imply_is_filled_in(infer):
    a = BinaryBlock('a')
    df = pd.DataFrame(dict(a=[None]*6 + [0, 1], b=[0, 1]*3 + [None, 1]))
    dls = DataBlock(blocks=(TransformBlock, Flow('f', a, BinaryBlock('b') | a, infer_labels=infer)), get_x=One(), splitter=IndexSplitter([6, 7])).dataloaders(df, bs=4, num_workers=0)
    learn = Learner(dls, No(dls.c))
    with learn.no_bar(): full, filled, report = learn.fill_labels(df, min_confidence=0)
    assert full.a.tolist()[:6] == [1]*6 and filled.a.sum() == 6
    with learn.no_bar(): assert len(learn.fill_labels(df[:0])[0]) == 0

def test_column_types_outlive_filling():
    df = pd.DataFrame(dict(size=pd.Categorical(['small', 'large', None, 'medium']*3, ['small', 'medium', 'large'], ordered=True), tags=[['x'], ['x', 'y,z'], None, []]*3))
    dls = DataBlock(blocks=(TransformBlock, Flow('f', SingleLabelBlock('size'), MultiLabelBlock('tags'))), get_x=One(), splitter=IndexSplitter([1])).dataloaders(df, bs=4, num_workers=0)
    learn = Learner(dls, No(dls.c))
    with learn.no_bar(): full = learn.fill_labels(df, 0)[0]
    assert full['size'].dtype == df['size'].dtype and full.tags[2] == [] and dls.flow.encode(full).mask.all()

@pytest.mark.parametrize('change', [dict(weight=10**400), dict(threshold='0.5'), dict(threshold=10**400), dict(col=['b'])])
def test_hostile_numbers_in_json(change):
    d = json.loads(Flow('f', BinaryBlock('a')).to_json())
    d['tasks'][0].update(change)
    with pytest.raises(FlowError, match="'a'"): Flow.from_json(json.dumps(d))

def test_infer_labels_is_one_of_three():
    with pytest.raises(FlowError, match='infer_labels'): Flow('f', BinaryBlock('a'), infer_labels=1)

def test_large_vocabularies_are_read_at_once():
    "Counted, not timed: no value is compared with all that came before."
    class Counted(str):
        n = 0
        def __eq__(self, o): Counted.n += 1; return str.__eq__(self, o)
        __hash__ = str.__hash__
    SingleLabelBlock('a', vocab=[Counted(i) for i in range(3000)])
    assert Counted.n < 30_000

def run(f, *args, capsys):
    with pytest.raises(SystemExit) as e: f([str(a) for a in args])
    return e.value.code, capsys.readouterr().err

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('cli')
    df = save_scenes(path/'pictures', n=40, size=32)[['img']].assign(size=['1', '2', '3', 'm']*10)
    df.to_csv(path/'mix.v2.csv', index=False)
    df[df['size'] != 'm'].to_csv(path/'test.csv', index=False)
    Flow('f', SingleLabelBlock('size')).to_json(path/'flow.json')
    return path

def test_another_csv_with_words_that_look_like_numbers(folder):
    condmtl_train([str(a) for a in ('--csv', folder/'mix.v2.csv', '--flow', folder/'flow.json', '--images', folder/'pictures', '--arch', 'squeezenet1_1', '--no-pretrained', '--epochs', 1, '--size', 32, '--workers', 0, '--quiet', '--out', folder/'run')])
    condmtl_evaluate([str(a) for a in ('--run', folder/'run', '--csv', folder/'test.csv', '--images', folder/'pictures', '--workers', 0, '--quiet', '--out', folder/'scores')])
    pred = pd.read_csv(folder/'scores'/'predictions.csv')
    assert pred.img.tolist() == pd.read_csv(folder/'test.csv').img.tolist() and pd.read_csv(folder/'scores'/'evaluation.csv').num_samples.max() == 30

def test_guess_takes_any_file_name(folder, tmp_path):
    condmtl_train([str(a) for a in ('--guess', folder/'mix.v2.csv', '--flow', tmp_path/'guess.json')])
    assert Flow.from_json(tmp_path/'guess.json').name == 'mix_v2'

@pytest.mark.parametrize('arch, size', [('vit_b_16', 32), ('squeezenet1_1', 8)])
def test_an_architecture_that_does_not_fit_is_said_so(folder, tmp_path, capsys, arch, size):
    code, err = run(condmtl_train, '--csv', folder/'mix.v2.csv', '--flow', folder/'flow.json', '--images', folder/'pictures', '--arch', arch, '--no-pretrained', '--epochs', 1, '--size', size, '--workers', 0, '--out', tmp_path/'run', capsys=capsys)
    assert code == 2 and f'--arch {arch}' in err and 'Traceback' not in err
