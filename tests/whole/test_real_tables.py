"""What tables really hold, a line of the README's promise after the other, on the real files: BRACOL's coffee leaves,
EDOS's posts, the survey NHANES, Galaxy Zoo 2's votes and MTFL's faces. Every number is counted by pandas.

More of the same files: what `guess_flow` finds (tests/data/test_guess.py), the likelihood of votes and expected shares
(tests/tasks/test_votes.py), the published split of EDOS (tests/whole/test_groups_and_parts.py)."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import classification_report

from fastai.vision.all import Resize
from fastai_condmtl.datasets.readers import read_mtfl
from fastai_condmtl.tabular.all import *
from fastai_condmtl.vision.all import ConditionalDataLoaders

pytestmark = [pytest.mark.data, pytest.mark.filterwarnings('ignore')]
FLAGS = ['miner', 'rust', 'phoma', 'cercospora']


@pytest.fixture(scope='module')
def leaves(shared_data):
    return pd.read_csv(shared_data / 'bracol' / 'dataset.csv')


@pytest.fixture(scope='module')
def posts(shared_data):
    "Labels alone: no text is read"
    cols = ['label_sexist', 'label_category', 'label_vector', 'split']
    return pd.read_csv(shared_data / 'edos' / 'edos_labelled_aggregated.csv', usecols=cols)


@pytest.fixture(scope='module')
def people(shared_data):
    return pd.read_csv(shared_data / 'nhanes' / 'NHANES.csv', encoding='utf-8-sig', low_memory=False)


@pytest.fixture(scope='module')
def galaxies(shared_data):
    return pd.read_csv(shared_data / 'galaxyzoo2' / 'table5.csv.gz')


def counted(bound, df):
    "Task path → which rows count, boolean (N,) or (N, labels)"
    mask = bound.encode(df).mask > 0
    return {path: mask[:, s.targets].numpy().squeeze() for path, s in bound.slices.items()}


# ---- `none`, `0` where a question was not asked: na=
# -------------------------------------------------------------------------------------------
def test_leaves_and_posts_where_nobody_was_asked(leaves, posts):
    stress = SingleLabelBlock('predominant_stress')
    ill = Flow('ill', MultiLabelBlock('flags', cols=FLAGS), OrdinalBlock('severity', vocab=[1, 2, 3, 4], na=0))
    bound = Flow('leaf', stress, ill | stress.ne(0)).bind(leaves)
    counts, is_ill = counted(bound, leaves), leaves.predominant_stress != 0
    assert counts['ill.severity'].tolist() == (is_ill & (leaves.severity != 0)).tolist()
    assert counts['ill.flags'].tolist() == np.repeat(is_ill.to_numpy()[:, None], 4, 1).tolist()

    sexist = BinaryBlock('sexist', 'label_sexist', vocab=('not sexist', 'sexist'))
    category = SingleLabelBlock('category', 'label_category') | sexist
    bound = Flow('post', sexist, category, na='none').bind(posts)
    assert counted(bound, posts)['category'].tolist() == (posts.label_category != 'none').tolist()
    assert len(bound.tasks['category'].vocab) == 4


# ---- an answer that means "maybe": uncertain=
# -------------------------------------------------------------------------------------------
@pytest.mark.parametrize('as_prob', [None, 0.1])
def test_people_who_do_not_know(people, as_prob):
    "NHANES asks women whether they are pregnant: 72 yes, 1,573 no, 51 unknown"
    female = BinaryBlock('female', 'Gender', vocab=('male', 'female'))
    pregnant = BinaryBlock('pregnant', 'PregntNow', vocab=('No', 'Yes'), uncertain={'Unknown': as_prob})
    weeks = BinaryBlock('smokes', 'SmokeNow', vocab=('No', 'Yes')) | pregnant
    bound = Flow('person', female, pregnant | female, weeks).bind(people)
    counts, y = counted(bound, people), bound.encode(people)
    unsure = (people.PregntNow == 'Unknown').to_numpy()
    asked = people.PregntNow.isin(['Yes', 'No'] + ['Unknown'] * (as_prob is not None)).to_numpy()
    assert unsure.sum() == 51 and counts['pregnant'].tolist() == asked.tolist()
    if as_prob is not None:
        assert np.allclose(y[unsure, 0, bound.slices['pregnant'].targets], as_prob)
    yes = (people.PregntNow == 'Yes') & people.SmokeNow.notna()  # of those who do not know, nothing hangs on it
    assert counts['smokes'].tolist() == yes.tolist() and 0 < yes.sum() < 72


# ---- shares of annotators: soft=True
# -------------------------------------------------------------------------------------------
def test_shares_of_volunteers(galaxies):
    "The loss is torch's against the published fractions; what hangs on them is asked where the majority says so"
    edge_on, bulge = 't02_edgeon_a04_yes_fraction', 't09_bulge_shape_a27_no_bulge_fraction'
    odd = [c for c in galaxies if c.startswith('t08_odd') and c.endswith('_fraction') and 'weighted' not in c]
    shares = galaxies[[edge_on, bulge, 't06_odd_a14_yes_fraction', *odd]].head(2000)
    disk = BinaryBlock('edge_on', edge_on, soft=True)
    is_odd = BinaryBlock('is_odd', 't06_odd_a14_yes_fraction', soft=True)
    what = MultiLabelBlock('what', cols=odd, soft=True) | is_odd
    bound = Flow('galaxy', disk, BinaryBlock('no_bulge', bulge, soft=True) | disk, is_odd, what).bind(shares)
    counts = counted(bound, shares)
    assert counts['no_bulge'].tolist() == (shares[edge_on] > 0.5).tolist()
    rows = (shares['t06_odd_a14_yes_fraction'] > 0.5).to_numpy()
    assert 20 < rows.sum() < 1000 and (counts['what'] == rows[:, None]).all()
    logits = torch.randn(len(shares), bound.c, generator=torch.Generator().manual_seed(0))
    losses = ConditionalLoss(bound)
    per_task = dict(zip(bound.paths, losses.per_task(logits, bound.encode(shares)).tolist()))
    for path, cols, of in (('edge_on', [edge_on], slice(None)), ('what', odd, rows)):
        want = F.binary_cross_entropy_with_logits(
            logits[of][:, bound.slices[path].logits], torch.tensor(shares[cols].to_numpy()[of], dtype=torch.float32)
        )
        assert per_task[path] == pytest.approx(float(want), rel=1e-4), path


# ---- votes an answer: VotesBlock
# -------------------------------------------------------------------------------------------
def test_votes_of_volunteers(galaxies):
    cols = {
        a: f't01_smooth_or_features_{a}_count' for a in ('a01_smooth', 'a02_features_or_disk', 'a03_star_or_artifact')
    }
    shape = VotesBlock('shape', cols=cols)
    edge = ['t02_edgeon_a04_yes_count', 't02_edgeon_a05_no_count']
    bound = Flow('g', shape, VotesBlock('edge_on', cols=edge) | shape.eq('a02_features_or_disk')).bind(galaxies)
    counts = counted(bound, galaxies)
    assert (
        counts['edge_on'].all(1).tolist()
        == ((galaxies[cols['a02_features_or_disk']] > 0) & (galaxies[edge].sum(1) > 0)).tolist()
    )


# ---- lists that went through a csv, and one-hot lists
# -------------------------------------------------------------------------------------------
@pytest.mark.parametrize('form', ['list as text', 'one-hot list', 'one-hot list as text', 'one-hot with commas'])
def test_lists_of_what_a_leaf_has(leaves, form):
    "The same labels as four columns of 0 and 1, after a csv or as they are"
    hot = leaves[FLAGS].to_numpy().tolist()
    cells = {
        'list as text': [str([name for name, there in zip(FLAGS, row) if there]) for row in hot],
        'one-hot list': hot,
        'one-hot list as text': list(map(str, hot)),
        'one-hot with commas': [','.join(map(str, row)) for row in hot],
    }[form]
    df = leaves.assign(what=pd.Series(cells))
    named = Flow('f', MultiLabelBlock('what', vocab=FLAGS)).bind(df)
    columns = Flow('f', MultiLabelBlock('what', cols=FLAGS)).bind(df)
    assert torch.equal(named.encode(df).as_subclass(torch.Tensor), columns.encode(df).as_subclass(torch.Tensor))


# ---- classes that nest: within=
# -------------------------------------------------------------------------------------------
def test_posts_nest(posts):
    "2 → 4 → 11: read off the table, and whatever a network says, no vector contradicts its category"
    sexist = SingleLabelBlock('sexist', 'label_sexist')
    category = SingleLabelBlock('category', 'label_category', within=sexist)
    vector = SingleLabelBlock('vector', 'label_vector', within=category)
    bound = Flow('post', sexist, category, vector, na='none').bind(posts)
    of = posts[posts.label_vector != 'none'].groupby('label_vector').label_category.first()
    block = bound.tasks['vector']
    assert {v: bound.tasks['category'].vocab[k] for v, k in zip(block.vocab, block.parents)} == of.to_dict()
    assert counted(bound, posts)['vector'].tolist() == (posts.label_vector != 'none').tolist()
    loss = bound.loss_func
    acts = loss.activation(torch.randn(500, bound.c, generator=torch.Generator().manual_seed(0)) * 3)
    preds = [FlowPrediction(bound, bound.loss_func.decodes(a[None])[0], activations=a) for a in acts]
    assert sum(p['vector'] is not None for p in preds) > 100
    for p in preds:
        assert p['category'] == (None if p['vector'] is None else of[p['vector']])
        assert (p['sexist'] == 'sexist') == (p['category'] is not None)


# ---- several rows of one person: group_col=
# -------------------------------------------------------------------------------------------
@pytest.mark.parametrize('stratify', [False, True])
def test_people_stand_on_one_side(people, stratify):
    "10,000 rows of 6,779 people"
    smoked = BinaryBlock('Smoke100', vocab=('No', 'Yes'))
    flow = Flow('person', smoked, BinaryBlock('SmokeNow', vocab=('No', 'Yes')) | smoked)
    dls = ConditionalTabularDataLoaders.from_df(
        people, flow, cat_names=['Gender'], cont_names=['Age'], group_col='ID', test_pct=0.2, seed=0, stratify=stratify
    )
    parts = [set(people.ID[loader.dataset.items.index]) for loader in dls.loaders]
    sizes = [len(loader.dataset) for loader in dls.loaders]
    assert sum(map(len, parts)) == people.ID.nunique() == 6779 and sum(sizes) == 10_000
    assert np.allclose(np.array(sizes) / 10_000, [0.6, 0.2, 0.2], atol=0.05)


# ---- a written questionnaire
# -------------------------------------------------------------------------------------------
def test_the_questionnaire_of_the_survey(people):
    "The skip logic as a data dictionary of REDCap: as many rows count as pandas finds"
    yes_no = 'Yes, yes | No, no'
    lines = [
        ('Smoke100', 'radio', yes_no, ''),
        ('SmokeNow', 'radio', yes_no, "[Smoke100] = 'Yes'"),
        ('Marijua', 'radio', yes_no, ''),
        ('RegularMarij', 'radio', yes_no, "[Marijua] = 'Yes'"),
    ]
    titles = ['Variable / Field Name', 'Field Type', 'Choices, Calculations, OR Slider Labels']
    flow = Flow.from_redcap(pd.DataFrame(lines, columns=[*titles, 'Branching Logic (Show field only if...)']), 'survey')
    counts = counted(flow.bind(people), people)
    assert {path: int(count.sum()) for path, count in counts.items()} == dict(
        Smoke100=4024 + 1745 + 1466, SmokeNow=1745 + 1466, Marijua=2049 + 1526 + 1366, RegularMarij=1526 + 1366
    )


# ---- a third part of pictures
# -------------------------------------------------------------------------------------------
def test_the_published_split_of_leaves(leaves, shared_data):
    "70 %, 15 % and 15 % of the pictures, as the paper's code draws them"
    folder = shared_data / 'bracol' / 'leaf'
    if not folder.is_dir():
        pytest.skip('no pictures of BRACOL')
    rows = np.arange(len(leaves))
    np.random.seed(150)
    np.random.shuffle(rows)
    train, valid = int(np.ceil(0.7 * len(rows))), int(0.85 * len(rows))
    part = np.array(['test'] * len(rows), dtype=object)
    part[rows[:train]], part[rows[train:valid]] = 'train', 'valid'
    df = leaves.assign(part=part)
    stress = SingleLabelBlock('predominant_stress')
    flow = Flow('leaf', stress, OrdinalBlock('severity', vocab=[1, 2, 3, 4], na=0) | stress.ne(0))
    dls = ConditionalDataLoaders.from_df(
        df, flow, folder, fn_col='id', suff='.jpg', valid_col='part', item_tfms=Resize(16), bs=32, num_workers=0
    )
    assert [len(loader.dataset) for loader in dls.loaders] == [train, valid - train, len(rows) - valid]
    table = df[df.part == 'test']
    x, y = dls.loaders[2].one_batch()
    assert x.shape == (32, 3, 16, 16)
    assert [dls.loaders[2].dataset.tls[0].items.id.tolist()] == [table.id.tolist()]
    assert dls.flow.encode(table).mask[:, 1].sum() == ((table.predominant_stress != 0) & (table.severity != 0)).sum()


def test_the_published_test_faces(shared_data):
    "MTFL's own list of test faces is the third part, beside a validation part of the training list"
    root = shared_data / 'mtfl_mini'
    df = read_mtfl(root, size=40)
    n_test = sum(bool(line.strip()) for line in (root / 'testing.txt').read_text().splitlines())
    df = df.rename(columns=dict(is_valid='published'))
    flow = Flow('face', BinaryBlock('glasses'), SingleLabelBlock('pose'))
    dls = ConditionalDataLoaders.from_df(
        df, flow, root, fn_col='img', test_col='published', item_tfms=Resize(16), bs=32, num_workers=0, seed=0
    )
    assert len(dls.loaders[2].dataset) == n_test == df.published.sum() == 400
    assert len(dls.loaders[1].dataset) == pytest.approx(0.2 * (len(df) - 400), abs=2)
    glasses = torch.cat([y[:, 0, 0] for _, y in dls.loaders[2]]).sum()
    assert glasses == df.glasses[df.published].sum()


# ---- scores a label, a class
# -------------------------------------------------------------------------------------------
def test_scores_of_each_class(people):
    "Of the third part, by scikit-learn on the decisions of the learner"
    df = people[people.MaritalStatus.notna()].head(1500).reset_index(drop=True)
    flow = Flow('person', SingleLabelBlock('MaritalStatus'))
    dls = ConditionalTabularDataLoaders.from_df(
        df, flow, cat_names=['Gender'], cont_names=['Age'], group_col='ID', test_pct=0.3, seed=0, bs=128
    )
    learn = conditional_tabular_learner(dls, [16])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        table = learn.evaluate(ds_idx=2, by_label=True, metrics='f1_score')
        part = df.loc[dls.loaders[2].dataset.items.index]
        decided = learn.predict_df(part).MaritalStatus
    want = classification_report(part.MaritalStatus, decided, output_dict=True, zero_division=0)
    res = table[table.label.isin(list(want))].set_index('label')
    assert len(res) >= 5
    for label, row in res.iterrows():
        assert row.support == want[label]['support']
        assert row.metric_res == pytest.approx(want[label]['f1-score'], abs=1e-6)
