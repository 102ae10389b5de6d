"""A release: `make release VERSION=0.2.0` writes the version and the changelog's date, builds wheel and source archive,
and checks the wheel in an environment that has the core requirements only"""

import datetime, re, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEWS = '## Unreleased\n'
PLACES = {'settings.ini': r'^version = (.*)$', 'fastai_condmtl/__init__.py': r'^__version__ = "(.*)"$'}


def as_numbers(version):
    "`(0, 2, 0)` of '0.2.0'"
    if not re.fullmatch(r'\d+\.\d+\.\d+', version or ''):
        sys.exit(f'{version!r} is no version: make release VERSION=0.2.0')
    return tuple(map(int, version.split('.')))


def read(root, file):
    return (root / file).read_text(encoding='utf-8')


def check(root, version):
    "Exit where this is no next version, or where nothing is told of it"
    for file, place in PLACES.items():
        now = re.search(place, read(root, file), re.M)[1]
        if as_numbers(now) >= as_numbers(version):
            sys.exit(f'{file} has version {now} already: {version} must be a later one')
    news = read(root, 'CHANGELOG.md').partition(NEWS)[2].partition('\n## ')[0]
    if not news.strip():
        sys.exit('CHANGELOG.md tells nothing under Unreleased: write what users notice')


def write(root, version, day):
    "Put the version where it stands, and its date into the changelog; `day`: a date"
    check(root, version)
    for file, place in PLACES.items():
        text = read(root, file)
        old = re.search(place, text, re.M)
        new = text[: old.start(1)] + version + text[old.end(1) :]
        (root / file).write_text(new, encoding='utf-8')
    log = read(root, 'CHANGELOG.md').replace(NEWS, f'{NEWS}\n## {version} - {day.isoformat()}\n', 1)
    (root / 'CHANGELOG.md').write_text(log, encoding='utf-8')


def main():
    version = sys.argv[1] if len(sys.argv) > 1 else ''
    as_numbers(version)
    changed = subprocess.run(['git', 'status', '--porcelain'], cwd=ROOT, capture_output=True, text=True, check=True)
    if changed.stdout:
        sys.exit('there are changes that are not committed: a release is made of what is')
    write(ROOT, version, datetime.date.today())
    subprocess.run([ROOT / '.ci' / 'wheel', 'dist'], cwd=ROOT, check=True)
    print(
        f'dist/ holds version {version}, whose wheel ran the demo. Next: git commit -am "Version {version}", '
        f'git tag v{version}, twine upload dist/*{version}*'
    )


if __name__ == '__main__':
    main()
