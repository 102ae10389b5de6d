"""A file from anyone's hands names and sets values, and does no more: samples of `mutated_files`, which reads as many
mutations as one likes; and that what it looks for is found"""

import json, random, re, sys, time
import pytest
import mutated_files
from fastai_condmtl.all import Flow, FlowError

pytest.importorskip('safetensors', reason='needs safetensors (extra safe)')
pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='memory is limited as on Linux')


@pytest.mark.parametrize(
    'kind, n',
    [('flow', 300), ('safe', 300), ('network', 20), ('thresholds', 300), ('pictures', 300), ('packed', 300)],
)
def test_files_are_read_or_refused(kind, n, tmp_path):
    ends, wrongs = mutated_files.read_mutated(mutated_files.prepared(kind, tmp_path), n)
    assert not wrongs, wrongs
    assert ends['refused'] > n / 5 and (ends['read'] or n < 100)


# ---- what it looks for is found
# --------------------------------------------------------------------------------------------------------------
def raises_another_error(folder):
    raise KeyError('x')


def reads_another_file(folder):
    Flow.from_json(folder.parent / 'bait' / 'flow.json')


def imports_what_is_named(folder):
    __import__('evil_module')


def starts_a_program(folder):
    sys.audit('os.system', b'true')


def writes(folder):
    (folder / 'new').write_text('x')


def hangs(folder):
    while True:
        pass


def waits(folder):
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        pass


def takes_memory(folder):
    bytearray(10**11)


def hides_that_it_took_memory(folder):
    try:
        bytearray(10**11)
    except MemoryError as e:
        raise FlowError('something else') from e


def gives_another_kind(folder):
    return 3


@pytest.mark.parametrize(
    'does, told',
    [
        (raises_another_error, "KeyError: 'x'"),
        (reads_another_file, 'may not: opens .*flow.json'),
        (imports_what_is_named, "may not: imports 'evil_module'"),
        (starts_a_program, 'may not: os.system'),
        (writes, 'may not: writes .*new'),
        (hangs, 'hangs'),
        (waits, 'hangs'),
        (takes_memory, 'MemoryError'),
        (hides_that_it_took_memory, 'takes too much memory'),
        (gives_another_kind, 'is read as int'),
    ],
)
def test_what_a_reader_may_not_do_is_found(does, told, tmp_path, monkeypatch):
    kind = mutated_files.prepared('flow', tmp_path)
    monkeypatch.setattr(kind, 'read', lambda: does(kind.folder))
    ends, wrongs = mutated_files.read_mutated(kind, 1, seconds=0.2)
    assert ends == {'WRONG': 1}
    assert re.search(told, wrongs[0])


def test_mutations_reach_all_of_a_file(tmp_path):
    "Each key of the flow is changed, dropped and renamed by some mutation, and values of every type stand in its place"
    kind, kept, types, broken = mutated_files.prepared('flow', tmp_path), None, set(), 0
    whole = json.loads(kind.contents[0])
    for seed in range(1500):
        kind.mutate(random.Random(seed))
        try:
            tree = json.loads(kind.path.read_bytes())
            same = {key for key in ('format', 'version', 'flow') if tree.get(key) == whole[key]}
        except (AttributeError, ValueError, RecursionError):
            broken += 1
            continue
        kept = same if kept is None else kept & same
        types |= {type(holder[key]) for holder, key in mutated_files.places(tree)}
    assert not kept and types == {dict, list, str, int, float, bool, type(None)} and broken > 100
