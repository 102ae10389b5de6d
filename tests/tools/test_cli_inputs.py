"Tables and texts from the command line: trained, judged again, explained and scored; each number as the learner's own"

import re
import numpy as np, pandas as pd, pytest
from fastai.learner import load_learner
from sklearn.metrics import accuracy_score
from fastai_condmtl.all import BinaryBlock, Flow, UnboundedRegressionBlock, guess_flow
from fastai_condmtl.datasets.reviews import review_flow, reviews
from fastai_condmtl.tools.cli import condmtl_train
from fastai_condmtl.tools.cli_common import status
from fastai_condmtl.tools.cli_inputs import Pictures
from fastai_condmtl.tools.cli_options import train_parser
from fastai_condmtl.tools.cli_predict import condmtl_predict
from fastai_condmtl.tools.cli_run import condmtl_evaluate, condmtl_explain


def give(command, *args):
    return status(command, [str(arg) for arg in args])


def people(n=160, seed=0):
    "Whether somebody works, and the income of who does; `code` is a category whose words may look like numbers"
    rng = np.random.default_rng(seed)
    df = pd.DataFrame(dict(age=rng.integers(18, 80, n), code=rng.choice(['01', '02', 'x'], n), name=range(n)))
    works = (df.age < 60) ^ (rng.random(n) < 0.1)
    df['works'] = np.where(works, 'yes', 'no')
    df['income'] = pd.Series(1000 + 40 * (df.code == '01') * df.age + rng.normal(0, 50, n)).where(works).round(1)
    return df


@pytest.fixture(scope='module')
def table_run(tmp_path_factory):
    d = tmp_path_factory.mktemp('table')
    people().to_csv(d / 'people.csv', index=False)
    works = BinaryBlock('works', vocab=['no', 'yes'])
    Flow('people', works, UnboundedRegressionBlock('income') | works).to_json(d / 'flow.json')
    args = (
        '--csv',
        d / 'people.csv',
        '--flow',
        d / 'flow.json',
        '--ignore',
        'name',
        '--epochs',
        4,
        '--bs',
        32,
        '--quiet',
    )
    code, said = give(condmtl_train, *args, '--out', d / 'run')
    assert code == 0, said
    return d, said


@pytest.fixture(scope='module')
def text_run(tmp_path_factory):
    d = tmp_path_factory.mktemp('texts')
    reviews(160).to_csv(d / 'reviews.csv', index=False)
    review_flow().to_json(d / 'flow.json')
    args = '--csv', d / 'reviews.csv', '--flow', d / 'flow.json', '--text', 'text', '--epochs', 1, '--bs', 32, '--quiet'
    code, said = give(condmtl_train, *args, '--out', d / 'run')
    assert code == 0, said
    return d, said


def test_the_inputs_of_a_table_are_told_and_its_scores_are_those_by_hand(table_run):
    d, said = table_run
    assert 'Inputs: 1 category (code), 1 number (age)' in said and 'name' not in said.partition('\n')[0]
    learn, valid = load_learner(d / 'run/learner.pkl'), pd.read_csv(d / 'run/valid.csv', dtype={'code': str})
    by_hand = accuracy_score(valid.works, learn.predict_df(valid).works)
    table = pd.read_csv(d / 'run/evaluation.csv').set_index(['task_path', 'metric_name'])
    assert table.metric_res['works', 'accuracy'] == pytest.approx(by_hand, abs=1e-6) or 'cross-fit' in said
    assert by_hand > (valid.works == 'yes').mean() - 0.1
    assert list(valid) == list(people()) and not (d / 'run/results.png').exists()
    assert '<h1>people</h1>' in (d / 'run/report.html').read_text(encoding='utf-8')


@pytest.mark.parametrize('kind', ['table', 'text'])
def test_judged_again(kind, request):
    d, _ = request.getfixturevalue(f'{kind}_run')
    code, said = give(condmtl_evaluate, '--run', d / 'run', '--quiet', '--out', d / 'again')
    assert code == 0, said
    again, first = (pd.read_csv(file) for file in (d / 'again/evaluation.csv', d / 'run/evaluation.csv'))
    pd.testing.assert_frame_equal(again, first, rtol=1e-4)
    assert len(pd.read_csv(d / 'again/predictions.csv')) == len(pd.read_csv(d / 'run/valid.csv'))


def test_words_that_look_like_numbers_stay_words(table_run, tmp_path):
    "A file in which each code reads as a number gets the answers that its rows get among all others"
    d, _ = table_run
    df = people()
    some = df[df.code != 'x'][:12]
    some.to_csv(tmp_path / 'some.csv', index=False)
    assert (
        give(condmtl_evaluate, '--run', d / 'run', '--csv', tmp_path / 'some.csv', '--out', tmp_path, '--quiet')[0] == 0
    )
    got = pd.read_csv(tmp_path / 'predictions.csv').income
    want = load_learner(d / 'run/learner.pkl').predict_df(df).income[some.index]
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize('kind, csv', [('table', 'people.csv'), ('text', 'reviews.csv')])
def test_trees_and_scores_of_rows(kind, csv, request, tmp_path):
    d, _ = request.getfixturevalue(f'{kind}_run')
    code, said = give(condmtl_explain, '--run', d / 'run', '--csv', d / csv, '--max-n', 2, '--out', tmp_path / 'trees')
    assert code == 0 and said.count('── row ') == 2 and 'more (--max-n)' in said
    assert [file.name for file in (tmp_path / 'trees').iterdir()] == ['trees.txt']
    code, said = give(condmtl_explain, '--run', d / 'run', 'a.png')
    assert code == 2 and 'reads no images' in said
    pytest.importorskip('pyarrow', reason='needs pyarrow (extra parquet)')
    df = pd.read_csv(d / csv, dtype=str if kind == 'text' else {'code': str})[:10]
    df.to_parquet(tmp_path / 'a.parquet')
    code, said = give(condmtl_predict, '--run', d / 'run', '--in', tmp_path / 'a.parquet', '--out', tmp_path / 'scored')
    assert code == 0 and '10 rows, 0 of them not scored' in said and 'are not here' not in said, said
    scored, want = pd.read_parquet(tmp_path / 'scored/a.parquet'), load_learner(d / 'run/learner.pkl').predict_df(df)
    first = want.columns[0]
    assert scored[first].tolist() == want[first].tolist()


def test_a_subject_may_be_blank_where_there_is_a_body(text_run, tmp_path):
    d, df = text_run[0], reviews(160).assign(subject='late')
    df.loc[::9, 'subject'] = None
    df.to_csv(tmp_path / 'r.csv', index=False)
    args = '--csv', tmp_path / 'r.csv', '--flow', d / 'flow.json', '--text', 'subject', 'text', '--epochs', 1, '--quiet'
    code, said = give(condmtl_train, *args, '--bs', 32, '--out', tmp_path / 'run')
    assert code == 0, said
    code, said = give(condmtl_evaluate, '--run', tmp_path / 'run', '--csv', tmp_path / 'r.csv', '--quiet')
    assert code == 0 and '160 rows' in said, said


def test_an_encoder_of_transformers(tmp_path):
    pytest.importorskip('transformers', reason='needs transformers')
    from fastai_condmtl.datasets.tiny_encoder import save_tiny_encoder

    df = reviews(120)
    save_tiny_encoder(tmp_path / 'encoder', df.text)
    df.to_csv(tmp_path / 'reviews.csv', index=False)
    review_flow().to_json(tmp_path / 'flow.json')
    args = (
        '--csv',
        tmp_path / 'reviews.csv',
        '--flow',
        tmp_path / 'flow.json',
        '--text',
        'text',
        '--epochs',
        1,
        '--quiet',
    )
    code, said = give(condmtl_train, *args, '--encoder', tmp_path / 'encoder', '--bs', 32, '--out', tmp_path / 'run')
    assert code == 0, said
    assert type(load_learner(tmp_path / 'run/learner.pkl').model[0]).__name__ == 'TransformerFeatures'
    assert len(pd.read_csv(tmp_path / 'run/history.csv')) == 2  # frozen, then all of it
    code, said = give(condmtl_train, *args, '--encoder', tmp_path / 'nowhere', '--out', tmp_path / 'other')
    assert code == 2 and 'cannot be loaded' in said


@pytest.mark.parametrize(
    'change, args, says',
    [
        (dict(code='a.png'), [], "column 'code' .*--images"),
        (dict(), ['--cat', 'cod'], "cat_names has 'cod'.*did you mean 'code'"),
        (dict(), ['--cat', 'works'], 'the answer would be given away'),
        (dict(), ['--ignore', 'name', 'age', 'code'], 'has no column beside'),
        (dict(), ['--text', 'cod'], "--text 'cod' is not a column"),
        (dict(code=None), ['--text', 'code'], 'has no text in 160 rows, the first in line 2'),
        (
            dict(),
            ['--encoder', 'e'],
            '--encoder is for texts, .*: leave it out, or name the column of texts with --text$',
        ),
        (
            dict(),
            ['--size', 224, '--arch=resnet18'],
            '--arch, --size are for pictures, .*: leave them out, or name the folder of pictures with --images$',
        ),
        (dict(), ['--fn-col', 'code'], '--fn-col is for pictures'),
        (dict(), ['--freeze-epochs', 1], '--freeze-epochs is for networks with pretrained weights'),
        (dict(), ['--text', 'code', '--freeze-epochs', 1], '--freeze-epochs is for networks with pretrained weights'),
        (dict(), ['--text', 'code', '--size', 32], '--size is for pictures, and --text says .*: leave it out$'),
        (dict(), ['--text', 'code', '--cat', 'age'], '--cat is for columns of a table, and --text says .*in Python'),
        (dict(), ['--text', 'code', '--images', '.'], 'two kinds of inputs'),
        (dict(), ['--ignore', 'nmae'], "--ignore 'nmae' is no column of '.*p.csv': did you mean 'name'"),
        (dict(works='perhaps'), [], "task 'works', row 0, column 'works', value 'perhaps': not a binary label"),
        (dict(works='perhaps'), ['--text', 'code'], "task 'works', row 0, column 'works', value 'perhaps'"),
        (dict(income='much'), [], "task 'income', row 0, column 'income', value 'much'"),
    ],
)
def test_wrong_inputs(table_run, tmp_path, change, args, says):
    d, _ = table_run
    people().assign(**change).to_csv(tmp_path / 'p.csv', index=False)
    code, said = give(
        condmtl_train, '--csv', tmp_path / 'p.csv', '--flow', d / 'flow.json', '--out', tmp_path / 'run', *args
    )
    last = said.splitlines()[-1]
    assert code == 2 and 'Traceback' not in said and re.search(f'^condmtl_train: error: .*{says}', last), said
    assert [file.name for file in tmp_path.iterdir()] == ['p.csv']  # no folder for what was not trained


def test_a_table_that_lacks_an_input(table_run, tmp_path):
    d, _ = table_run
    people().drop(columns='age').to_csv(tmp_path / 'p.csv', index=False)
    code, said = give(condmtl_evaluate, '--run', d / 'run', '--csv', tmp_path / 'p.csv', '--out', tmp_path)
    assert code == 2 and "has no column 'age', which the network reads" in said
    assert [task.name for task in guess_flow(people(), ignore=['age', 'code', 'name']).flow.tasks] == [
        'works',
        'income',
    ]


def test_copies_of_pictures_are_found_by_names_without_their_end(tmp_path):
    for name, content in zip('abc', (b'one', b'two', b'one')):
        (tmp_path / f'{name}.png').write_bytes(content)
    df = pd.DataFrame(dict(fn=list('abc'), works=[0, 1, 1]))
    args = ['--auto', 't.csv', '--images', str(tmp_path), '--fn-col', 'fn', '--suff', '.png']
    pictures = Pictures(train_parser().parse_args(args), df)
    assert pictures.audit(Flow('f', BinaryBlock('works'))).rows(kind='same_file') == [0, 2]
