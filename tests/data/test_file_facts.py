"What a file holds is told at its end, and a file that lacks a part, or has one too many, does not open"

import io
import json
import pytest
from fastai_condmtl.all import FlowError, PackedLabels
from fastai_condmtl.data.file_facts import read_facts, write_facts
from fastai_condmtl.data.packed import MAGIC


def written(content, facts, magic=b'a kind 1'):
    "The bytes of a file"
    file = io.BytesIO()
    file.write(content)
    write_facts(file, facts, magic)
    return file.getvalue()


def read(path, content):
    path.write_bytes(content)
    return read_facts(path, b'a kind 1', 'write_it')


@pytest.mark.parametrize('n', [0, 1, 10**5])
@pytest.mark.parametrize('facts', [{}, dict(n=10**15, names=['ünï', '"', None]), dict(deep=[[[1.5]]])])
def test_facts_come_back_with_the_size(tmp_path, n, facts):
    content = written(bytes(n), facts)
    assert read(tmp_path / 'f', content) == facts | dict(size=len(content))
    length = int.from_bytes(content[-16:-8], 'little')  # found by hand: the line, its length, the kind
    assert content[:n] == bytes(n) and content[-8:] == b'a kind 1' and len(content) == n + length + 16
    assert json.loads(content[n : n + length]) == facts | dict(size=len(content))


def test_no_part_of_a_file_opens(tmp_path):
    content = written(b'x' * 40, dict(n=40))
    parts = [content[:end] for end in range(len(content))] + [content[start:] for start in range(1, len(content))]
    for damaged in (*parts, content + b'x', content + content, b'x' + content):
        with pytest.raises(FlowError, match='lacks a part: write it again|in place of .*: copy it again'):
            read(tmp_path / 'f', damaged)


def test_another_kind_or_none(tmp_path):
    with pytest.raises(FlowError, match='is no file that write_it has written'):
        read(tmp_path / 'f', written(b'', {}, b'a kind 2'))
    with pytest.raises(FlowError, match='there is no file .*: write it with write_it'):
        read_facts(tmp_path / 'nowhere', b'a kind 1', 'write_it')


@pytest.mark.parametrize('end', [b'[' * 10**5, b'{"size": "x"}', b'{"size": null}', b'{"size": [1]}'])
def test_a_last_line_that_says_nothing(tmp_path, end):
    (tmp_path / 'p').write_bytes(end + len(end).to_bytes(8, 'little') + MAGIC)
    with pytest.raises(FlowError, match='is no file that'):
        PackedLabels(tmp_path / 'p')
