"README.md is made from the index notebook, and its code runs."
import importlib.util, re
import matplotlib.pyplot as plt

def test_in_step_with_the_index(root):
    spec = importlib.util.spec_from_file_location('readme', root/'docs'/'readme.py')
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert (root/'README.md').read_text(encoding='utf-8') == made.readme(root), 'run python docs/readme.py'

def test_code_runs(root, tmp_path, capsys):
    "Word for word, but for a smaller network without downloaded weights and one epoch instead of three."
    from fastai_condmtl.synthetic import save_scenes
    code = '\n'.join(re.findall(r'```python\n(.*?)```', (root/'README.md').read_text(encoding='utf-8'), re.S))
    for old, new in {'conditional_vision_learner(dls, resnet18)': 'conditional_vision_learner(dls, squeezenet1_1, pretrained=False)', 'fine_tune(3)': 'fine_tune(1)',
                     "fn_col='img',": "fn_col='img', num_workers=0,", "'security.pkl'": f"{str(tmp_path/'security.pkl')!r}"}.items():
        assert old in code, old
        code = code.replace(old, new)
    df = save_scenes(tmp_path, n=80)
    ns = dict(df=df, path=tmp_path, img=tmp_path/df.img[0])
    exec(code, ns)
    assert (tmp_path/'security.pkl').exists() and len(plt.get_fignums())
    plt.close('all')
    assert list(ns['flow'].tasks) == [ns[n] for n in ('camera_blocked', 'door_open', 'door_locked', 'person_present', 'person')]
