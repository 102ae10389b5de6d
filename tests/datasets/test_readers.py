"""Readers on files written here in the published formats, bad ones among them, on the drawn faces, and on real
rows of MTFL where they are."""

import warnings
import numpy as np, pandas as pd, pytest
from PIL import Image
from scipy.spatial.transform import Rotation
from fastai.vision.all import Resize, ResizeMethod
from fastai_condmtl.vision.all import ConditionalDataLoaders, FlowError, FlowWarning
from fastai_condmtl.datasets.faces import POINTS, POSES, XY, save_faces
from fastai_condmtl.datasets.readers import (
    RACES,
    biwi_flow,
    head_angles,
    mtfl_flow,
    pascal_flow,
    read_biwi,
    read_mtfl,
    read_pascal,
    read_utkface,
    utkface_flow,
)

LINES = [
    (
        r' lfw_5590\Aaron_Peirsol_0001.jpg 107.250000 147.750000 126.250000 106.750000 143.750000 108.250000 '
        r'108.750000 '
        r'130.750000 151.750000 152.250000 1 1 2 3'
    ),
    (
        r' lfw_5590\Aaron_Pena_0001.jpg 103.750000 144.250000 129.250000 108.750000 145.250000 116.250000 107.750000 '
        r'138.750000 160.750000 156.250000 1 2 2 3'
    ),
    '',
    (
        r' net_7876\0_0_0.jpg 20.000000 60.000000 40.000000 25.000000 58.000000 30.000000 31.000000 50.000000 '
        r'70.000000 '
        r'71.000000 2 2 1 5'
    ),
]


@pytest.fixture
def mtfl(tmp_path):
    (tmp_path / 'training.txt').write_bytes('\r\n'.join([*LINES, '']).encode())
    (tmp_path / 'testing.txt').write_bytes(' AFLW/1.jpg 10 30 20 11 29 12 12 20 30 31 2 1 2 1\r\n'.encode())
    for f, size in (
        ('lfw_5590/Aaron_Peirsol_0001', (250, 250)),
        ('lfw_5590/Aaron_Pena_0001', (250, 250)),
        ('net_7876/0_0_0', (80, 100)),
        ('AFLW/1', (40, 50)),
    ):
        (tmp_path / f).parent.mkdir(exist_ok=True)
        Image.new('RGB', size).save(tmp_path / f'{f}.jpg')
    return tmp_path


def test_mtfl_lines(mtfl):
    df = read_mtfl(mtfl)
    assert df.columns.tolist() == [
        'img',
        *XY,
        'gender',
        'smile',
        'glasses',
        'pose',
        'is_valid',
    ] and df.is_valid.tolist() == [False] * 3 + [True]
    assert df.img.tolist() == [
        'lfw_5590/Aaron_Peirsol_0001.jpg',
        'lfw_5590/Aaron_Pena_0001.jpg',
        'net_7876/0_0_0.jpg',
        'AFLW/1.jpg',
    ]
    assert df[['gender', 'smile', 'glasses', 'pose']].to_numpy().tolist() == [
        ['male', 1, 0, 'frontal'],
        ['male', 0, 0, 'frontal'],
        ['female', 0, 1, 'right profile'],
        ['female', 1, 0, 'left profile'],
    ]
    assert (
        df.left_eye_x[0] == pytest.approx(107.25 * 40 / 250)
        and df.nose_y[2] == pytest.approx(50 * 40 / 100)
        and df.right_mouth_x[2] == pytest.approx(58 * 40 / 80)
        and df.right_mouth_y[2] == pytest.approx(71 * 40 / 100)
    )
    own = read_mtfl(mtfl, 'train', size=None)
    assert own.left_eye_y[1] == 116.25 and len(own) == 3 and len(read_mtfl(mtfl, 'test')) == 1
    bound = mtfl_flow().bind(df)
    y = bound.encode(df)
    assert (y[:, 1, bound.slices['left_eye.x'].targets][:, 0] > 0).tolist() == [True, True, True, False] and (
        y[:, 1, bound.slices['right_mouth.y'].targets][:, 0] > 0
    ).tolist() == [True, True, False, True]
    dls = ConditionalDataLoaders.from_df(
        df,
        mtfl_flow(),
        path=mtfl,
        fn_col='img',
        valid_col='is_valid',
        bs=2,
        num_workers=0,
        item_tfms=Resize(40, method=ResizeMethod.Squish),
    )
    x, y = dls.one_batch()
    assert x.shape[-2:] == (40, 40) and y.shape == (2, 2, 14)
    free = ConditionalDataLoaders.from_df(
        read_mtfl(mtfl, size=None),
        mtfl_flow(None),
        path=mtfl,
        fn_col='img',
        valid_col='is_valid',
        bs=2,
        num_workers=0,
        item_tfms=Resize(40, method=ResizeMethod.Squish),
    )
    a, b = (d.train.do_item(1)[1] for d in (dls, free))  # the same point by both ways
    i, j = (d.flow.slices[p].targets.start for d, p in ((dls, 'nose.x'), (free, 'nose')))
    np.testing.assert_allclose(a[0, i : i + 2] * 2 - 1, b[0, j : j + 2], atol=1e-5)


def test_mtfl_what_does_not_fit(mtfl):
    with pytest.raises(FlowError, match="no folder"):
        read_mtfl(mtfl / 'x')
    with pytest.raises(FlowError, match="no file 'training.txt' in .* holds .*unpacked"):
        read_mtfl(mtfl / 'AFLW')
    with pytest.raises(FlowError, match="split='valid' must be 'train', 'test' or None"):
        read_mtfl(mtfl, 'valid')
    (mtfl / 'AFLW/1.jpg').unlink()
    with pytest.raises(
        FlowError, match='cannot be read, and its landmarks are told in pixels of its own size.*size=None'
    ):
        read_mtfl(mtfl, 'test')
    assert len(read_mtfl(mtfl, 'test', size=None)) == 1
    for bad in (
        ' a.jpg 1 2 3 4 5 6 7 8 9 10 1 1 1\r\n',
        ' a.jpg 1 2 3 4 5 6 7 8 9 10 0 1 1 3\r\n',
        ' a.jpg 1 2 3 4 5 6 7 8 9 10 1 1 1 6\r\n',
        ' a.jpg 1 2 x 4 5 6 7 8 9 10 1 1 1 3\r\n',
        'a.jpg\r\n',
    ):
        (mtfl / 'testing.txt').write_bytes(b'\r\n' + bad.encode())
        with pytest.raises(FlowError, match='line 2 of testing.txt is no line of MTFL: .a.jpg'):
            read_mtfl(mtfl, 'test')


def test_landmarks_outside_are_blank(mtfl):
    (mtfl / 'testing.txt').write_bytes(b' AFLW/1.jpg 10 41 20 11 29 12 12 20 30 31 2 1 2 3\r\n')
    with pytest.warns(UserWarning, match='1 landmark outside the picture left blank: .AFLW/1.jpg: right_eye'):
        df = read_mtfl(mtfl, 'test')
    assert df[['right_eye_x', 'right_eye_y']].isna().all(axis=None) and df.drop(
        columns=['right_eye_x', 'right_eye_y']
    ).notna().all(axis=None)


def test_mtfl_reads_what_is_drawn(tmp_path):
    drawn = save_faces(tmp_path, n=40, seed=2, missing=0)
    df = read_mtfl(tmp_path / 'MTFL', size=64)
    df.index = [int(f[-9:-4]) for f in df.img]
    df = df.sort_index()
    for c in XY:
        np.testing.assert_allclose(df[c][drawn[c].notna()], drawn[c].dropna(), atol=1e-4)
    for c in ('gender', 'smile', 'glasses', 'pose'):
        assert (df[c] == drawn[c]).all()


@pytest.mark.data
def test_published_mtfl(shared_data):
    path = shared_data / 'mtfl_mini'
    if not (path / 'training.txt').exists():
        pytest.skip(f'no MTFL at {path}')
    df = read_mtfl(path)
    raw = [
        l.split() for f in ('training', 'testing') for l in (path / f'{f}.txt').read_text().splitlines() if l.strip()
    ]
    assert (
        len(df) == len(raw) == 1600
        and df.is_valid.sum() == 400
        and df[[*XY]].min().min() > 0
        and df[[*XY]].max().max() < 40
        and all((path / f).is_file() for f in df.img)
    )
    for k in (0, 7, 1199, 1200, 1599):
        w, h = Image.open(path / raw[k][0].replace('\\', '/')).size
        for j, p in enumerate(POINTS):
            assert df[f'{p}_x'][k] == pytest.approx(float(raw[k][1 + j]) * 40 / w) and df[f'{p}_y'][k] == pytest.approx(
                float(raw[k][6 + j]) * 40 / h
            )
        assert (
            df.smile[k] == (raw[k][12] == '1')
            and df.glasses[k] == (raw[k][13] == '1')
            and df.pose[k] == POSES[int(raw[k][14]) - 1]
            and df.gender[k] == ('male', 'female')[int(raw[k][11]) - 1]
        )
    y = mtfl_flow().bind(df).encode(df)
    assert y[:, 1].mean() > 0.9


def test_utkface_names(tmp_path):
    names = {
        '26_1_3_20170117175041574.jpg.chip.jpg': (26, 'female', 'Indian'),
        '1_0_0_20161219140623097.jpg': (1, 'male', 'White'),
        '61_1_20170109142408075.jpg.chip.jpg': (61, 'female', None),
        '24_0_1_20170116220224657 .jpg.chip.jpg': (24, 'male', 'Black'),
        '53__0_20170116184028385.jpg': (53, None, 'White'),
        '55_0_0_20170116232725357jpg.chip.jpg': (55, 'male', 'White'),
        '44_1_4_20170116235150272.pg.chip.jpg': (44, 'female', 'Others'),
        '39_1_9_20170116174525125.jpg': (39, 'female', None),
        '116_3_4_20170116235150272.jpg': (116, None, 'Others'),
        'part1/7_1_2_20170116235150273.jpg': (7, 'female', 'Asian'),
        'notes.jpg': (None,) * 3,
    }
    (tmp_path / 'part1').mkdir()
    for n in names:
        (tmp_path / n).touch()
    (tmp_path / 'README.md').touch()
    with pytest.warns(UserWarning, match='5 names do not say all of age, gender and race') as told:
        df = read_utkface(tmp_path).set_index('img')
    assert all(
        n in str(told[0].message) for n in ('53__0_20170116184028385.jpg', '61_1_20170109142408075', 'notes.jpg')
    )
    assert (
        set(df.index) == set(names)
        and {k: tuple(None if pd.isna(v) else v for v in r) for k, r in zip(df.index, df.to_numpy())} == names
    )
    bound = utkface_flow().bind(df)
    assert bound.tasks['race'].vocab == list(RACES) and bound.encode(df)[:, 1].sum() == df.notna().sum().sum()
    with pytest.raises(FlowError, match='no picture in'):
        read_utkface(_empty(tmp_path))


def _empty(path):
    (path / 'none').mkdir()
    return path / 'none'


def test_pascal(tmp_path):
    (tmp_path / 'train.csv').write_text(
        'fname,labels,is_valid\n000005.jpg,chair,True\n000007.jpg,car,True\n000009.jpg,horse '
        'person,False\n000012.jpg,,False\n'
    )
    df = read_pascal(tmp_path)
    assert (
        df.fname[0] == 'train/000005.jpg'
        and df.is_valid.tolist() == [True, True, False, False]
        and df.labels.tolist() == ['chair', 'car', 'horse person', '']
    )
    bound = pascal_flow().bind(df)
    assert (
        bound.tasks['labels'].vocab == ['car', 'chair', 'horse', 'person']
        and bound.encode(df)[2, 0].tolist() == [0, 0, 1, 1]
        and bound.encode(df)[3].tolist() == [[0] * 4, [1] * 4]
    )
    assert read_pascal(tmp_path / 'train.csv', folder=None).fname[3] == '000012.jpg'
    (tmp_path / 'semi.csv').write_text('fname,labels\n1.jpg,a;b\n')
    assert pascal_flow(';').bind(read_pascal(tmp_path / 'semi.csv', label_delim=';')).tasks['labels'].vocab == [
        'a',
        'b',
    ]
    for text, why in (
        ('file,labels\n1,a\n', "has no column 'fname'"),
        (
            'fname,labels,is_valid\n1,a,True\n2,b,perhaps\n',
            "line 3: is_valid is 'perhaps', which is neither True nor False",
        ),
    ):
        (tmp_path / 'bad.csv').write_text(text)
        with pytest.raises(FlowError, match=why):
            read_pascal(tmp_path / 'bad.csv')
    with pytest.raises(FlowError, match='there is no file'):
        read_pascal(tmp_path / 'gone.csv')


CAL = (
    '517.679 0 320 \n0 517.679 240.5 \n0 0 1 \n\n0 0 0 0 \n\n0.999947 0.00432361 0.00929419 \n-0.00446314 0.999877 '
    '0.0150443 \n-0.009228 -0.015085 0.999844 \n\n-24.0198 5.8896 -13.2308 \n\n640 480\n'
)


def pose_text(angles, centre):
    yaw, pitch, roll = angles
    r = Rotation.from_euler('xyz', [pitch, -yaw, -roll], degrees=True).as_matrix().T
    return ''.join(' '.join(f'{v:.9f}' for v in row) + ' \n' for row in r) + '\n' + ' '.join(map(str, centre)) + ' \n\n'


@pytest.fixture
def biwi(tmp_path):
    for person, frames in (
        ('01', {3: ((20.0, -10.0, 5.0), (84.64, 37.07, 962.3)), 12: ((-60.0, 45.0, -20.0), (-150.0, 90.0, 900.0))}),
        ('13', {4: ((0.0, 0.0, 0.0), (0.0, 0.0, 1000.0))}),
    ):
        d = tmp_path / person
        d.mkdir()
        (d / 'rgb.cal').write_text(CAL if person == '01' else CAL.replace('517.679', '500'))
        (d / 'depth.cal').write_text(CAL)
        for i, (a, c) in frames.items():
            Image.new('RGB', (640, 480)).save(d / f'frame_{i:05}_rgb.jpg')
            (d / f'frame_{i:05}_pose.txt').write_text(pose_text(a, c))
    (tmp_path / '01.obj').touch()
    return tmp_path


def test_biwi(biwi):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        df = read_biwi(biwi)
    assert df.img.tolist() == [
        '01/frame_00003_rgb.jpg',
        '01/frame_00012_rgb.jpg',
        '13/frame_00004_rgb.jpg',
    ] and df.is_valid.tolist() == [False, False, True]
    for i, f in enumerate(df.img):  # the lines of fastai's book
        ctr = np.genfromtxt(biwi / f.replace('rgb.jpg', 'pose.txt'), skip_header=3)
        cal = np.genfromtxt(biwi / df.person[i] / 'rgb.cal', skip_footer=6)
        assert (
            df.head_x[i] == pytest.approx(ctr[0] * cal[0][0] / ctr[2] + cal[0][2])
            and df.head_y[i] == pytest.approx(ctr[1] * cal[1][1] / ctr[2] + cal[1][2])
            and df.depth[i] == ctr[2]
        )
    np.testing.assert_allclose(df[['yaw', 'pitch', 'roll']], [[20, -10, 5], [-60, 45, -20], [0, 0, 0]], atol=1e-4)
    assert read_biwi(biwi, valid=['01', '13']).is_valid.all()
    dls = ConditionalDataLoaders.from_df(
        df,
        biwi_flow(),
        path=biwi,
        fn_col='img',
        valid_col='is_valid',
        bs=2,
        num_workers=0,
        item_tfms=Resize((48, 64), method=ResizeMethod.Squish),
    )
    assert dls.one_batch()[1].shape == (2, 2, 6) and set(dls.flow.paths) == {'head', 'depth', 'yaw', 'pitch', 'roll'}
    x, y = dls.train_ds[0][1], dls.train.do_item(0)[1]  # -1 to 1 of a picture of 640 x 480, whatever it is squashed to
    np.testing.assert_allclose(y[0, :2], np.array([df.head_x[0], df.head_y[0]]) / [320, 240] - 1, atol=1e-5)


def test_biwi_what_cannot_be_read(biwi):
    (biwi / '01/frame_00003_pose.txt').unlink()
    (biwi / '01/frame_00012_pose.txt').write_text('1 0 0\n0 1 0\n')
    (biwi / '13/frame_00004_pose.txt').write_text(pose_text((0, 0, 0), (900.0, 0.0, 1000.0)))
    with pytest.warns(UserWarning) as told:
        df = read_biwi(biwi)
    assert (
        "the pose of 2 frames cannot be read and is left blank: '01/frame_00003_rgb.jpg', '01/frame_00012_rgb.jpg'"
        in str(told[0].message)
        and "outside the picture in 1 frame and is left blank: '13/frame_00004_rgb.jpg'" in str(told[1].message)
    )
    assert (
        df.iloc[:2, 2:8].isna().all(axis=None)
        and df[['head_x', 'head_y']].isna().all(axis=None)
        and df.yaw[2] == 0
        and len(df) == 3
    )
    (biwi / '01/rgb.cal').write_text('none')
    with pytest.raises(FlowError, match="'01/rgb.cal' cannot be read: it must begin with the 3 x 3 matrix"):
        read_biwi(biwi)
    with pytest.raises(FlowError, match='no frame_'):
        read_biwi(_empty(biwi))


def test_angles_are_a_rotation():
    for r in Rotation.random(20, random_state=0):
        yaw, pitch, roll = head_angles(r.as_matrix())
        again = Rotation.from_euler('xyz', [pitch, -yaw, -roll], degrees=True).as_matrix().T
        np.testing.assert_allclose(again, r.as_matrix(), atol=1e-9)


def test_mtfl_numbers_that_are_none(mtfl):
    for bad in ('nan', 'inf', '-inf', '1e400'):
        (mtfl / 'testing.txt').write_text(f' AFLW/1.jpg 10 30 20 11 29 {bad} 12 20 30 31 2 1 2 1\n')
        with pytest.raises(FlowError, match='line 1 of testing.txt is no line of MTFL'):
            read_mtfl(mtfl, 'test')
    for bad in (0, -1, 'a', True, (4, 4), float('nan')):
        for read in (lambda: read_mtfl(mtfl, 'train', size=bad), lambda: mtfl_flow(bad)):
            with pytest.raises(FlowError, match='^size=.* must be a number of pixels above 0'):
                read()
    (mtfl / 'testing.txt').write_bytes('Müller.jpg 1 2'.encode('latin1'))
    with pytest.raises(FlowError, match="testing.txt' is no text in UTF-8"):
        read_mtfl(mtfl, 'test')


def test_pascal_lines_that_end_in_a_comma(tmp_path):
    "As by the loaders: the cells do not move by one column, and what stands beyond the last is an error"
    file = tmp_path / 'train.csv'
    file.write_text('fname,labels\n1.jpg,horse person,\n2.jpg,,\n')
    assert read_pascal(tmp_path).to_numpy().tolist() == [['train/1.jpg', 'horse person'], ['train/2.jpg', '']]
    file.write_text('fname,labels\n1.jpg,horse,person\n2.jpg,car,\n')
    with pytest.raises(FlowError, match='hold more cells than the first line names columns'):
        read_pascal(tmp_path)


def test_pascal_what_cannot_be_read(tmp_path):
    file = tmp_path / 'train.csv'
    for data, why in (
        (b'', 'EmptyDataError'),
        (b'fname,labels\na,b\nc,d,e\n', 'ParserError'),
        ('fname,labels\nMüller.jpg,a\n'.encode('latin1'), 'UnicodeDecodeError'),
    ):
        file.write_bytes(data)
        with pytest.raises(FlowError, match=f"train.csv' cannot be read .{why}.*first line names fname and labels"):
            read_pascal(tmp_path)
    file.write_text('fname,labels\n1.jpg,a\n ,b\n')
    with pytest.raises(FlowError, match="train.csv', line 3: fname is blank"):
        read_pascal(tmp_path)
    file.write_text('fname,labels\nNA.jpg,None\n')
    assert read_pascal(tmp_path).labels.tolist() == ['None']  # a class may be called so


def test_biwi_recordings_that_are_not_there(biwi):
    with pytest.warns(FlowWarning, match="which `valid` names: '99'"):
        assert not read_biwi(biwi, valid='99').is_valid.any()
    for bad in (13, [13], None):
        with pytest.raises(FlowError, match="valid=.* must be the name of a recording, such as '13'"):
            read_biwi(biwi, valid=bad)


def test_biwi_numbers_that_are_none(biwi):
    "A pose that is not all there is one that cannot be read"
    (biwi / '01/frame_00003_pose.txt').write_text(pose_text((20.0, -10.0, 5.0), (84.64, float('nan'), 962.3)))
    with pytest.warns(FlowWarning, match='the pose of 1 frame cannot be read .*01/frame_00003'):
        df = read_biwi(biwi)
    assert df.iloc[0][['head_x', 'head_y', 'depth', 'yaw', 'pitch', 'roll']].isna().all()


def test_names_of_races_are_a_list(tmp_path):
    (tmp_path / '1_0_2_20170109150557335.jpg').touch()
    for use in (lambda races: read_utkface(tmp_path, races), utkface_flow):
        for bad in ('White', 3, []):
            with pytest.raises(FlowError, match='races=.* must be a list of names'):
                use(bad)
