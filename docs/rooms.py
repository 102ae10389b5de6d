"""The opening pages of the site's rooms: a paragraph, the room's place on the way of the data, and its chapters.

Text and order stand in chapters.yml; titles and descriptions are those of the notebooks.
"""

import posixpath, yaml
from dataclasses import dataclass
from html import escape
from pathlib import Path

CHAPTERS = Path(__file__).with_name('chapters.yml')
LETTER, LINE, BOX = 7.3, 30, 24  # of the pictures, in pixels: a letter's width, a line's and a box's height
WIDTHS = dict(wide=(720, 8), narrow=(340, 4))  # pixels and stations in a line; extra.css shows the one that fits


@dataclass
class Room:
    "A folder of the site"

    folder: str  # its name below `nbs`, and in addresses
    title: str
    text: str  # the opening paragraph, Markdown
    chapters: list  # notebooks relative to the folder, in reading order
    station: str = ''  # where it stands on the way; empty: on the whole of it

    @property
    def notebooks(self):
        "Paths of the chapters' notebooks below `nbs`"
        return [posixpath.normpath(posixpath.join(self.folder, f'{o}.ipynb')) for o in self.chapters]


def read_rooms(path=CHAPTERS):
    "The stations of the way, and the rooms in the order of the site"
    told = yaml.safe_load(path.read_text(encoding='utf-8'))
    return told['way'], [Room(folder, **room) for folder, room in told['rooms'].items()]


def box(x, y, width, name, href, kind=''):
    "A name in a frame that leads to `href`"
    return (
        f'<a class="{kind}" href="{href}"><rect x="{x:g}" y="{y:g}" width="{width:g}" height="{BOX}" rx="4"/>'
        f'<text x="{x + width / 2:g}" y="{y + 16:g}">{escape(name)}</text></a>'
    )


def stations(here, way, rooms, width, in_line):
    "The way as shapes, `in_line` stations in a line, with the room `here` filled; and the height they take"
    shapes, column, top = [], width / in_line, 0
    for start in range(0, len(way), in_line):
        line = way[start : start + in_line]
        standing = [[r for r in rooms if r.station == station] for station in line]
        for i, (station, names) in enumerate(zip(line, standing)):
            left = i * column
            shapes.append(f'<text class="station" x="{left + column / 2:g}" y="{top + 16}">{escape(station)}</text>')
            if station != way[0]:
                shapes.append(f'<path d="M{max(left - 6, 1):g} {top + 12}h12m-4 -4l4 4l-4 4"/>')
            for j, room in enumerate(names):
                kind = 'here' if room is here else ''
                shapes.append(box(left + 4, top + 26 + j * LINE, column - 8, room.folder, f'../{room.folder}/', kind))
        top += 26 + max(map(len, standing)) * LINE + 8
    return shapes, top


def inside(room, pages, width, top):
    "The room's chapters as shapes in a frame below `top`; and the height of all"
    shapes, x, y = [], 12, top + 34
    for notebook in room.notebooks:
        address = posixpath.relpath(pages[notebook].path, room.folder).removesuffix('.md')
        name = posixpath.basename(address)
        wide = len(name) * LETTER + 14
        if x + wide > width - 12:
            x, y = 12, y + LINE
        shapes.append(box(x, y, wide, name, f'{address}/'))
        x += wide + 6
    height = y + LINE + 6
    frame = f'<rect class="room" x="1" y="{top}" width="{width - 2}" height="{height - top - 1}" rx="6"/>'
    return [frame, f'<text class="name" x="13" y="{top + 22}">{escape(room.title)}</text>', *shapes], height


def picture(room, way, rooms, pages):
    "SVG of the way with this room on it and its chapters inside: one for screens, one for phones"
    pictures = []
    for kind, (width, in_line) in WIDTHS.items():
        shapes, top = stations(room, way, rooms, width, in_line)
        chapters, height = inside(room, pages, width, top)
        label = f'The way of the data: {", ".join(way)}. The chapters of {room.title} in a frame below'
        pictures.append(
            f'<svg class="way {kind}" viewBox="0 0 {width} {height:g}" role="img" aria-label="{escape(label)}">'
            f'{"".join(shapes + chapters)}</svg>'
        )
    return f'<div class="ways">{"".join(pictures)}</div>'


def opening(room, way, rooms, pages):
    "Markdown of a room's first page; `pages` tells title, description and path of each notebook's page"
    lines = []
    for chapter, notebook in zip(room.chapters, room.notebooks):
        page = pages[notebook]
        description = f': {page.description}' if page.description else ''
        lines.append(f'1. [{page.title}]({chapter}.ipynb){description}')
    return '\n\n'.join(
        [f'# {room.title}', room.text, picture(room, way, rooms, pages), '## Chapters', '\n'.join(lines)]
    )
