"""Folds of pictures and of texts: `Cleaner` judges each row by the learner that has not seen it, and `average_folds`
says the mean of what the learners say"""

import numpy as np, pandas as pd, pytest, torch
from fastai.text.all import AWD_LSTM, awd_lstm_clas_config
from fastai.vision.all import Resize
from PIL import Image
from fastai_condmtl.datasets.reviews import review_flow, reviews
from fastai_condmtl.text.all import ConditionalTextDataLoaders, conditional_text_learner
from fastai_condmtl.vision.all import *

SMALL = awd_lstm_clas_config | dict(emb_sz=8, n_hid=12, n_layers=1)
pytestmark = pytest.mark.filterwarnings('ignore')


def activations(learn, rows):
    with learn.no_bar():
        return learn.get_preds(dl=learn.dls.test_dl(rows))[0].double().numpy()


def check_mean(learn, learners, rows, atol=1e-5):
    want = np.mean([activations(one, rows) for one in learners], 0)
    np.testing.assert_allclose(activations(learn, rows), want, atol=atol, rtol=1e-4)
    assert np.abs(activations(learners[0], rows) - want).max() > 10 * atol


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "Pictures that are light or dark, and a point in the light ones"
    folder, rng = tmp_path_factory.mktemp('pictures'), np.random.default_rng(0)
    df = pd.DataFrame(dict(img=[f'{i}.png' for i in range(24)], light=np.arange(24) % 2))
    for name, light in zip(df.img, df.light):
        Image.fromarray(rng.integers(100 * light, 100 + 155 * light, (20, 24, 3), dtype=np.uint8)).save(folder / name)
    df['spot'] = [[[5.0 + i % 7, 8.0]] if i % 2 else None for i in range(24)]
    return folder, df


def picture_flow():
    light = BinaryBlock('light', features='own')
    return Flow('pictures', light, KeypointsBlock('spot', points=['spot']) | light)


def of_pictures(folder, df):
    def fit(valid_idx):
        dls = ConditionalDataLoaders.from_df(
            df,
            picture_flow(),
            path=folder,
            fn_col='img',
            valid_idx=valid_idx,
            bs=8,
            num_workers=0,
            item_tfms=Resize(32),
        )
        return conditional_vision_learner(dls, 'test_resnet', pretrained=False, branches={'own': 16})

    return fit


def test_pictures(pictures):
    import matplotlib.pyplot as plt

    folder, df = pictures
    torch.manual_seed(0)
    folds = fit_folds(of_pictures(folder, df), picture_flow(), df, n=2, seed=0)
    learn = average_folds(folds)
    check_mean(learn, folds.learners, df)
    with learn.no_bar():
        said = learn.predict(folder / '1.png')[0]
        assert said['light'] == learn.predict_df(df).light.iloc[1]
    cleaner = Cleaner(folds, k=24)
    assert {*cleaner.table.task_path} <= {'light', 'spot'} and len(cleaner.table)
    cleaner.show(cleaner.table.task_path.iloc[0], k=3)
    plt.close('all')


def of_texts(df, **kwargs):
    def fit(valid_idx):
        dls = ConditionalTextDataLoaders.from_df(df, review_flow(), valid_idx=valid_idx, bs=16, num_workers=0, **kwargs)
        return conditional_text_learner(dls, AWD_LSTM, pretrained=False, config=SMALL)

    return fit


def test_texts():
    df = reviews(60)
    torch.manual_seed(0)
    words = ConditionalTextDataLoaders.from_df(df, review_flow(), bs=16, num_workers=0).vocab
    folds = fit_folds(of_texts(df, text_vocab=words), review_flow(), df, n=2, seed=0)
    learn = average_folds(folds)
    check_mean(learn, folds.learners, df[:20], atol=1e-6)
    with learn.no_bar():
        table = learn.predict_df(df[:5])
        assert learn.predict(df.text[0])[0][learn.dls.flow.paths[0]] is not None and len(table) == 5
    assert Cleaner(folds, k=5).table.row.isin(df.index).all()
    vocabs = iter([words, [*words[:9], *words[:8:-1]]])
    other = fit_folds(lambda idx: of_texts(df, text_vocab=next(vocabs))(idx), review_flow(), df, n=2, seed=0)
    with pytest.raises(FlowError, match='folds 0 and 1 do not read the same inputs: words .* same vocab'):
        average_folds(other)
