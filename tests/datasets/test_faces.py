"""Drawn faces: what the pictures show is what the labels say, and the files are those that MTFL and UTKFace publish."""

import re
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from fastai_condmtl.datasets.faces import POINTS, POSES, TONES, XY, faces, save_faces
from fastai_condmtl.datasets.readers import read_mtfl, read_utkface


@pytest.fixture(scope='module')
def full():
    return faces(300, seed=11, missing=0, size=128)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('faces')
    return path, save_faces(path, n=120, seed=11)


def near(im, x, y, r):
    return im[max(0, int(y) - r) : int(y) + r + 1, max(0, int(x) - r) : int(x) + r + 1].astype(int)


def test_eyes_are_where_the_labels_say(full):
    ims, df = full
    seen = df.dropna(subset=['left_eye_x'])
    assert 100 < len(seen) < 250
    for i, r in seen.iterrows():
        eye = near(ims[i], r.left_eye_x, r.left_eye_y, 5)
        assert near(ims[i], r.left_eye_x, r.left_eye_y, 1).mean() < 140 and eye.mean(-1).max() > 165, (
            i
        )  # a pupil, and white about it


def test_glasses_are_dark_and_hide_the_eyes(full):
    ims, df = full
    worn = df.glasses == 1
    assert df.loc[worn, [*XY[:4]]].isna().all(axis=None) and df.loc[
        ~worn & (df.pose == 'frontal'), [*XY[:4]]
    ].notna().all(axis=None)
    upper = [np.percentile(ims[i, 40:80].mean(-1), 2) for i in df.index[worn & (df.race < 2)]]
    assert np.median(upper) < 60


def test_smiles_show_teeth(full):
    ims, df = full
    front = df[(df.pose == 'frontal') & (df.race > 1)]

    def white(i, r):
        x, y = (r.left_mouth_x + r.right_mouth_x) / 2, r.left_mouth_y
        m = near(ims[i], x, y + 8, 9)
        return (m.min(-1) > 170).mean()

    teeth = np.array([white(i, r) for i, r in front.iterrows()])
    assert np.median(teeth[front.smile == 1]) > 0.1 > np.quantile(teeth[front.smile == 0], 0.9)


def test_pose_turns_the_nose(full):
    df = full[1].dropna(subset=['left_eye_x', 'right_eye_x'])
    off = df.nose_x - (df.left_eye_x + df.right_eye_x) / 2
    assert (off[df.pose == 'left'] < 0).all() and (off[df.pose == 'right'] > 0).all()
    assert abs(off[df.pose == 'frontal']).max() < off[df.pose == 'right'].median()
    assert (
        (df.left_eye_x < df.right_eye_x).all()
        and (df.nose_y > df.left_eye_y).all()
        and (df.left_mouth_y > df.nose_y).all()
    )


def test_tone_and_age_show(full):
    ims, df = full
    cheek = np.array(
        [
            near(ims[i], r.nose_x - {'left profile': -22, 'left': -14}.get(r.pose, 14), r.nose_y, 2).mean((0, 1))
            for i, r in df.iterrows()
        ]
    )
    nearest = (
        ((cheek[:, None] - 0.95 * np.array(TONES)) ** 2).sum(-1).argmin(1)
    )  # the tone of paint, by the nearest colour
    assert (abs(nearest - df.race) <= 1).mean() > 0.85 and (nearest == df.race).mean() > 0.5
    front = df[df.pose == 'frontal'].dropna(subset=['left_eye_x'])
    top = np.array(
        [
            np.ptp(near(ims[i], (r.left_eye_x + r.right_eye_x) / 2, r.left_eye_y - 34, 2).mean((0, 1)))
            for i, r in front.iterrows()
        ]
    )
    assert np.median(top[front.age > 80]) < np.median(top[front.age < 40])  # hair loses its colour
    assert df.age.min() >= 0 and df.age.max() <= 116 and df.age.between(0, 12).sum() > 20 and (df.age > 70).sum() > 20


def test_seeds_gaps_and_sizes():
    a, t = faces(20, seed=1)
    b, u = faces(8, seed=1, missing=0.7)
    assert (a[:8] == b).all() and u.notna().sum().sum() < t[:8].notna().sum().sum()
    both = t[:8].notna() & u.notna()
    assert all((t[c][:8] == u[c])[both[c]].all() for c in t)
    small = faces(8, seed=1, size=32)
    assert small[0].shape == (8, 32, 32, 3) and np.allclose(small[1][[*XY]] * 2, t[:8][[*XY]], equal_nan=True)
    assert abs(small[0].astype(int) - a[:8].reshape(8, 32, 2, 32, 2, 3).mean((2, 4))).mean() < 8  # the same drawing
    for p in POINTS:
        assert (t[f'{p}_x'].isna() == t[f'{p}_y'].isna()).all()


def test_mtfl_lists(folder):
    path, df = folder
    for name, n, sep in (('training', 96, '\\'), ('testing', 24, '/')):
        lines = (path / 'MTFL' / f'{name}.txt').read_bytes().decode('ascii').split('\r\n')
        assert len(lines) == n + 1 and lines[-1] == ''
        for l in lines[:-1]:
            file, *nums = l[1:].split(' ')
            assert (
                l[0] == ' '
                and len(nums) == 14
                and sep in file
                and all(re.fullmatch(r'\d+\.\d{6}', v) for v in nums[:10])
            )
            i, im = int(Path(file.replace('\\', '/')).stem), Image.open(path / 'MTFL' / file.replace('\\', '/'))
            xy = {
                f'{p}_{a}': float(v) * 64 / im.size[0]
                for (a, p), v in zip([(a, p) for a in 'xy' for p in POINTS], nums)
            }
            row = df.loc[i]
            for c in XY:
                assert 0 < xy[c] < 64 and (row[c] != row[c] or abs(xy[c] - row[c]) < 1e-4)
            for c, v, words in zip(
                ('gender', 'smile', 'glasses', 'pose'), map(int, nums[10:]), (('male', 'female'), (1, 0), (1, 0), POSES)
            ):
                assert pd.isna(row[c]) or row[c] == words[v - 1], (i, c)
    assert {Image.open(f).size for f in (path / 'MTFL').glob('*/*.jpg')} == {(64, 64), (96, 96)}


def test_utkface_names(folder):
    path, df = folder
    files = sorted(f.name for f in (path / 'UTKFace').iterdir())
    assert len(files) == 120 and set(files) == set(df.img.str.removeprefix('UTKFace/'))
    for name, row in zip(df.img.str.removeprefix('UTKFace/'), df.itertuples()):
        stamp = name.split('_')[-1].removesuffix('.jpg.chip.jpg')
        assert pd.to_datetime(stamp, format='%Y%m%d%H%M%S%f').year == 2017 and len(stamp) == 17
        age, gender, *race = map(int, name.split('_')[:-1])
        assert (pd.isna(row.age) or age == row.age) and (
            pd.isna(row.gender) or ('male', 'female')[gender] == row.gender
        )
        assert not race or pd.isna(row.race) or race == [row.race]
    pd.testing.assert_frame_equal(pd.read_csv(path / 'labels.csv'), df)


def test_the_reader_reads_the_drawn_lists(folder):
    drawn = read_mtfl(folder[0] / 'MTFL')
    assert (
        len(drawn) == 120
        and drawn.is_valid.sum() == 24
        and drawn[[*XY]].min().min() > 0
        and drawn[[*XY]].max().max() < 40
        and set(drawn.gender) == {'male', 'female'}
    )
    names = drawn.set_index(drawn.img.map(lambda f: int(Path(f).stem)))
    for c in ('gender', 'smile', 'glasses', 'pose'):
        known = folder[1][c].notna()
        assert (names[c].sort_index()[known] == folder[1][c][known]).all()


def test_the_reader_reads_the_drawn_names(folder):
    path, df = folder
    with pytest.warns(UserWarning, match='names do not say all of age, gender and race'):
        drawn = read_utkface(path / 'UTKFace', races=range(5)).set_index('img')
    want = df.set_index(df.img.str.removeprefix('UTKFace/'))
    for c in ('age', 'gender', 'race'):
        both = want[c].notna() & drawn[c].reindex(want.index).notna()
        assert both.sum() > 90 and (drawn[c].reindex(want.index)[both] == want[c][both]).all()
