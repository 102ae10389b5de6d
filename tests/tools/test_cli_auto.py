"`condmtl_train --auto`: what is guessed is said, what judges has chosen nothing, and each run leaves a page"

import json, re, shutil
import numpy as np, pandas as pd, pytest
from fastai.learner import load_learner
from sklearn.metrics import accuracy_score
from fastai_condmtl.all import BinaryBlock, Flow, SingleLabelBlock, guess_flow
from fastai_condmtl.datasets.machines import MODES, machines
from fastai_condmtl.datasets.reviews import reviews
from fastai_condmtl.datasets.synthetic import save_scenes
from fastai_condmtl.tools.cli import condmtl_train
from fastai_condmtl.tools.cli_auto import gives_away, may_name_owners, names_groups, settle
from fastai_condmtl.tools.cli_common import status
from fastai_condmtl.tools.cli_options import train_parser

QUICK = ['--quiet', '--n-boot', 40, '--bs', 32]


def auto(*args):
    return status(condmtl_train, ['--auto', *map(str, args)])


def options_for(file, *args):
    return train_parser().parse_args(['--auto', str(file), *map(str, args)])


def flow_said(said):
    "The flow that the printed code makes"
    code = re.search(r'^from fastai_condmtl.all import \*.*?^flow = Flow\(.*?\)$', said, re.M | re.S)[0]
    made: dict = {}
    exec(code, made)
    return made['flow']


def as_json(flow):
    "Tasks of a flow without the reasons"
    return [{key: v for key, v in task.items() if key != 'note'} for task in json.loads(flow.to_json())['tasks']]


def check_run(run, said):
    "A page about rows that neither trained nor chose, each row in one part, and the flow as it was said"
    page = (run / 'report.html').read_text(encoding='utf-8')
    assert 'Decisions on the rows that neither trained nor tuned' in page and '<h2>Training</h2>' in page
    assert as_json(flow_said(said)) == as_json(Flow.from_json(run / 'flow.json'))
    valid, test = pd.read_csv(run / 'valid.csv'), pd.read_csv(run / 'test/test.csv')
    assert not set(map(str, valid.to_numpy().tolist())) & set(map(str, test.to_numpy().tolist()))
    assert 'Trained: ' in said and (run / 'learner.pkl').is_file()
    return page, valid, test


def test_pictures(tmp_path):
    df = save_scenes(tmp_path, n=100, seed=1)
    shutil.copy(tmp_path / df.img[3], tmp_path / df.img[7])
    small = ['--arch', 'squeezenet1_1', '--no-pretrained', '--size', 32, '--workers', 0, '--epochs', 1, *QUICK]
    args = tmp_path / 'labels.csv', '--images', tmp_path, '--ignore', 'scene', *small, '--out', tmp_path / 'run'
    code, said = auto(*args)
    assert code == 0, said
    page, valid, test = check_run(tmp_path / 'run', said)
    assert "copies of 1 file of column 'img', 2 rows" in said
    assert 'boosting' not in page and 'data:image/jpeg' in page
    assert 'door_open = BinaryBlock' in said and '| ~camera_blocked' in said
    assert f'{len(test)} that neither train nor choose' in said
    assert len(valid) == pytest.approx(20, abs=6) and len(test) == pytest.approx(20, abs=6)
    assert not hasattr(load_learner(tmp_path / 'run/learner.pkl'), 'early_stopping_tasks')


def test_texts(tmp_path):
    reviews(200).to_csv(tmp_path / 'reviews.csv', index=False)
    code, said = auto(tmp_path / 'reviews.csv', '--text', 'text', '--epochs', 2, *QUICK, '--out', tmp_path / 'run')
    assert code == 0, said
    _, _, test = check_run(tmp_path / 'run', said)
    assert as_json(flow_said(said)) == as_json(guess_flow(reviews(200), 'reviews', ignore=['text']).flow)
    table = pd.read_csv(tmp_path / 'run/test/evaluation.csv').set_index(['task_path', 'metric_name'])
    decided, known = load_learner(tmp_path / 'run/learner.pkl').predict_df(test).language, test.language.notna()
    assert table.metric_res['language', 'accuracy'] == pytest.approx(
        accuracy_score(test.language[known], decided[known])
    )


def test_a_table_beside_boosting(tmp_path):
    df = machines(500, seed=1).assign(**{'Product ID': [f'p{i}' for i in range(500)], 'again': lambda d: d['OSF'] * 2})
    df.to_csv(tmp_path / 'machines.csv', index=False)
    code, said = auto(tmp_path / 'machines.csv', '--epochs', 2, *QUICK, '--out', tmp_path / 'run')
    assert code == 0, said
    page, _, _ = check_run(tmp_path / 'run', said)
    asked = {task.name for task in flow_said(said).tasks}
    assert 'Machine failure' in asked and asked - {'RNF'} <= {'Machine failure', *MODES}
    assert "Input 'Product ID' is left out: it names the rows" in said
    assert "Input 'again' is left out: each of its values stands with one answer to 'OSF'" in said
    assert '1 category (Type), 5 numbers' in said
    assert '>boosting<' in page and 'boosting' in pd.read_csv(tmp_path / 'run/test/evaluation.csv')
    assert 'boosting' not in pd.read_csv(tmp_path / 'run/evaluation.csv')


def test_people_are_not_torn(tmp_path, shared_data):
    "NHANES, of which each person stands there several times"
    columns = 'ID Gender Age BMI Pulse Education Diabetes DiabetesAge Smoke100 Smoke100n SmokeNow SmokeAge'.split()
    df = pd.read_csv(shared_data / 'nhanes/NHANES.csv', encoding='utf-8-sig', usecols=columns)
    df = df[df.ID.isin(df.ID.drop_duplicates()[:300])]
    df.to_csv(tmp_path / 'nhanes.csv', index=False)
    code, said = auto(tmp_path / 'nhanes.csv', '--epochs', 1, *QUICK, '--out', tmp_path / 'run')
    assert code == 0, said
    _, valid, test = check_run(tmp_path / 'run', said)
    train = set(df.ID) - set(valid.ID) - set(test.ID)
    assert "'ID' names 300 groups" in said and not set(valid.ID) & set(test.ID)
    assert df.ID.isin(train).sum() == len(df) - len(valid) - len(test)
    given = {task.name: str(task.given) for task in flow_said(said).tasks}
    assert given == dict(
        Diabetes='None', DiabetesAge='Diabetes', Smoke100='None', SmokeNow='Smoke100', SmokeAge='Smoke100'
    )
    assert "'Smoke100n' is left out: each of its values stands with one answer to 'Smoke100'" in said


def rows(n=60, **more):
    rng = np.random.default_rng(0)
    return pd.DataFrame(dict(size=rng.normal(size=n), sold=np.where(rng.random(n) < 0.5, 'yes', 'no'))).assign(**more)


@pytest.mark.parametrize(
    'more, args, want',
    [
        ({}, [], dict(valid_col=None, test_col=None, test_pct=0.2, group_col=None)),
        (dict(split=['train', 'valid', 'test'] * 20), [], dict(valid_col='split', test_col=None, test_pct=0.0)),
        (dict(split=['train', 'train', 'test'] * 20), [], dict(valid_col=None, test_col='split', test_pct=0.0)),
        (dict(is_valid=[0, 0, 1] * 20), [], dict(valid_col='is_valid', test_col=None, test_pct=0.2)),
        (dict(is_train=[0, 0, 1] * 20), [], dict(valid_col=None, test_col=None, test_pct=0.2)),
        (dict(fold=[0, 1, 2] * 20), [], dict(valid_col=None, test_col=None, test_pct=0.2)),
        (dict(patient=[i // 2 for i in range(60)]), [], dict(group_col='patient')),
        (dict(patient=[i // 2 for i in range(60)]), ['--ignore', 'patient'], dict(group_col=None)),
        (
            dict(patient=[i // 2 for i in range(60)], split=['train', 'val', 'test'] * 20),
            ['--ignore', 'split'],
            dict(group_col='patient', valid_col=None, test_pct=0.2),
        ),
        (dict(patient=range(60)), [], dict(group_col=None)),
        (dict(site=[i % 4 for i in range(60)]), [], dict(group_col=None)),
        ({}, ['--test-pct', 0.3], dict(test_pct=0.3)),
        ({}, ['--epochs', 7], dict(epochs=7)),
        ({}, [], dict(epochs=60, n_boot=200)),
    ],
)
def test_what_is_settled(tmp_path, more, args, want, capsys):
    rows(**more).to_csv(tmp_path / 't.csv', index=False)
    options = options_for(tmp_path / 't.csv', *args)
    df, flow, inputs = settle(options)
    said = capsys.readouterr().out
    assert {key: getattr(options, key) for key in want} == want
    assert [task.name for task in flow.tasks] == ['sold'] and 'size' in inputs.names(flow)[1]
    unfit = [name for name in more if name in ('split', 'is_valid', 'is_train', 'fold') or options.group_col == name]
    assert not set(unfit) & set(sum(inputs.names(flow), []))
    assert all(value in said for value in map(str, want.values()) if value in more)


def test_columns_of_1_and_2_are_told(tmp_path, capsys):
    "Forms code yes and no so, and sexes as well: they are inputs, unless they are named"
    rng = np.random.default_rng(0)
    table = rows(owned=rng.integers(1, 3, 60), used=rng.integers(1, 3, 60) * 1.0, stars=rng.integers(1, 4, 60))
    table.loc[3, 'used'] = np.nan
    table.to_csv(tmp_path / 't.csv', index=False)
    options = options_for(tmp_path / 't.csv')
    df, flow, inputs = settle(options)
    assert [task.name for task in flow.tasks] == ['sold'] and {'owned', 'used'} <= set(sum(inputs.names(flow), []))
    said = capsys.readouterr().out
    assert "'owned', 'used' hold 1 and 2 and count as inputs; if 1 and 2 say yes and no, name them in --tasks." in said
    _, flow, _ = settle(options_for(tmp_path / 't.csv', '--tasks', 'sold', 'owned', 'used'))
    assert [type(task) for task in flow.tasks] == [BinaryBlock, SingleLabelBlock, SingleLabelBlock]


def test_questions_can_be_named(tmp_path):
    rows(colour=['red', 'blue', 'green'] * 20).to_csv(tmp_path / 't.csv', index=False)
    _, flow, inputs = settle(options_for(tmp_path / 't.csv', '--tasks', 'colour'))
    assert [task.name for task in flow.tasks] == ['colour'] and inputs.names(flow) == (['sold'], ['size'])


@pytest.mark.parametrize(
    'table, args, says',
    [
        (rows()[['size']], [], 'holds yes and no.*--tasks'),
        (rows(sold=None), [], 'holds yes and no.*--tasks'),
        (rows(sold=[1, 2] * 30), [], "holds yes and no.*--tasks.*'sold' holds 1 and 2, which may say yes and no$"),
        (rows(sold=None, size=None), [], 'the labels are all blank.*Write a column for each question'),
        (rows(sold=None), ['--tasks', 'sold'], 'the labels are all blank'),
        (rows(sold='yes'), ['--tasks', 'sold'], "'sold': it is 'yes' wherever.*two different answers"),
        (rows(), ['--tasks', 'sodl'], "--tasks 'sodl' is no column"),
        (rows(), ['--ignore', 'sizes'], "--ignore 'sizes' is no column of '.*t.csv': did you mean 'size'"),
        (rows(), ['--size', 32], '--size is for pictures, and without --images and --text'),
        (rows()[['size']], ['--text', 'size'], 'the labels are missing'),
        (rows(img='a.png'), [], "column 'img' .*names image files.*--images"),
        (rows(img='a.png'), ['--images', '.'], '60 of 60 images are missing.*--images'),
        (rows().groupby('sold').head(1), [], 'too few|leaves no row'),
        (rows()[:0], [], 'holds no rows'),
        (
            rows(user=[i // 2 for i in range(60)], split=['train', 'val', 'test'] * 20),
            [],
            "30 of the 30 groups of 'user'",
        ),
    ],
)
def test_wrong_input_is_a_sentence(tmp_path, table, args, says):
    table.to_csv(tmp_path / 't.csv', index=False)
    code, said = auto(tmp_path / 't.csv', *args, '--out', tmp_path / 'run')
    assert code == 2 and 'Traceback' not in said, said
    assert re.search(says, said.splitlines()[-1]), said
    assert [file.name for file in tmp_path.iterdir()] == ['t.csv']  # no folder for what was not trained


def test_an_input_that_gives_away(tmp_path):
    "Against a loop over the values"
    rng = np.random.default_rng(1)
    for n_values in (1, 2, 5, 19, 30):
        cells = pd.Series(rng.integers(0, n_values, 200)).where(rng.random(200) < 0.9)
        noisy = pd.Series(rng.integers(0, 2, 200))
        for answers in (cells % 2, (cells % 2).where(rng.random(200) < 0.7), noisy, cells * 0):
            both = [(c, a) for c, a in zip(cells, answers) if c == c and a == a]
            told = {}
            for c, a in both:
                told.setdefault(c, set()).add(a)
            fits = 2 <= len(told) <= 20 and len({a for _, a in both}) >= 2
            assert gives_away(cells, answers) == (fits and all(len(found) == 1 for found in told.values()))


def test_names_of_groups():
    yes = 'ID id patient Patient_ID subject user_name caseId participant_no household'.split()
    no = 'grid invalid age groups paid inside patience sites_seen'.split()
    assert all(map(names_groups, yes)) and not any(map(names_groups, no))


def test_what_may_name_owners_is_no_input_unless_it_is_named(tmp_path, capsys):
    rng = np.random.default_rng(0)
    holder = pd.Series(rng.permutation(np.arange(180) % 60))
    more = dict(holder=holder.map('H{:03d}'.format), code=holder.map(lambda i: 10_007 + 1_013 * i), age=holder + 18)
    rows(180, **more, weight=holder + 0.5).to_csv(tmp_path / 't.csv', index=False)
    _, flow, inputs = settle(options_for(tmp_path / 't.csv'))
    said = capsys.readouterr().out
    assert "Input 'holder' is left out: it recurs about 3 times a value" in said and "--group-col 'holder'" in said
    assert inputs.names(flow) == ([], ['size', 'age', 'weight'])
    _, flow, inputs = settle(options_for(tmp_path / 't.csv', '--cat', 'holder', 'code'))
    assert inputs.names(flow)[0] == ['holder', 'code']
    options = options_for(tmp_path / 't.csv', '--group-col', 'holder')
    settle(options)
    assert options.group_col == 'holder' and "'holder' is left out" not in capsys.readouterr().out


def test_measures_and_amounts_name_no_owners():
    rng = np.random.default_rng(0)
    measures = rng.integers(18, 90, 300), rng.integers(0, 366, 1500), rng.integers(20, 90, 300) * 1000
    measures += (rng.lognormal(5, 1.5, 400).astype(int), rng.integers(1, 60, 200) * 100 - 1, rng.normal(size=100))
    assert not any(may_name_owners(pd.Series(cells)) for cells in measures)
    assert not may_name_owners(pd.Series(rng.choice(list('abcdef'), 100)))


def test_what_numbers_the_rows_is_no_input_unless_it_is_named(tmp_path, capsys):
    "Whole numbers that rise by one and are called so, in any order; a measure that is unique stays, whatever its name"
    rng = np.random.default_rng(0)
    mixed = rng.permutation(60)
    numbers = {'row': mixed + 5, 'RowNumber': range(60), 'Unnamed: 0': range(1, 61)}
    measures = dict(year=range(1960, 2020), number_of_beds=mixed * 2 + 1, line=np.where(mixed == 59, 90, mixed))
    rows(60, **numbers, **measures).to_csv(tmp_path / 't.csv', index=False)
    _, flow, inputs = settle(options_for(tmp_path / 't.csv'))
    said = capsys.readouterr().out
    assert inputs.names(flow) == ([], ['size', *measures])
    assert "Input 'row' is left out: it numbers the rows from 5 to 64; to read it all the same, name it in" in said
    assert all(f"Input '{name}' is left out" in said for name in numbers)
    options = options_for(tmp_path / 't.csv', '--cont', 'row', 'size')
    assert settle(options)[2].names(flow) == ([], ['row', 'size']) and 'row' not in options.ignore
