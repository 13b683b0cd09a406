"Data as others publish it: damaged images, archives that several processes want at once, and memory."
import io
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from ivgr.core import Frame, InputError
from ivgr.data.check import report_on, usable
from ivgr.data.conversations import Conversations
from ivgr.data.files import ImageFinder, unpack
from ivgr.data.images import Encoded, image_size, load_image
from ivgr.data.samples import Samples, check_boxes, read_sample, target_boxes
from ivgr.needle import NeedleConfig, box_text, needle_scene, split_of, write_needle
from ivgr.prompts import read_boxes

from forked import Forked

@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HOME', str(tmp_path/'home'))
    return tmp_path/'home'/'ivgr'

def _files():
    im = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    for kind,kw in (('PNG', {}), ('JPEG', {}), ('GIF', {}), ('WEBP', {}), ('BMP', {}), ('TIFF', {}),
                    ('GIF', dict(save_all=True, append_images=[im.rotate(90)]))):
        buffer = io.BytesIO()
        im.save(buffer, kind, **kw)
        yield buffer.getvalue()

def test_damaged_images_are_named():
    "Cut or scrambled, a file is read or is an InputError with its name; nothing else ever comes out"
    rng,files,refused = random.Random(0),list(_files()),0
    for _ in range(2000):
        data = bytearray(rng.choice(files))
        if rng.random()<.4: data = data[:rng.randrange(len(data))]
        else:
            for _ in range(rng.randrange(1, 12)):
                end = min(len(data), rng.choice([40, 200, 10**6]))
                data[rng.randrange(end)] = rng.randrange(256)
        for read in (image_size, load_image):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter('ignore')  # Pillow's, of large sizes in scrambled headers
                    read(Encoded('row 7', bytes(data)))
            except InputError as e:
                assert "'row 7'" in str(e)
                refused += 1
    assert refused>1000

anything = st.recursive(st.none()|st.booleans()|st.integers()|st.floats()|st.text(max_size=8)|st.binary(max_size=8),
                        lambda v: st.lists(v, max_size=4)|st.dictionaries(st.sampled_from(['bbox', 'bytes', 'path', 'x']), v, max_size=3), max_leaves=6)
PNG = next(_files())
GOOD = dict(problem='<image>\nWhat?', query='What?', answer='this', images=[dict(bytes=PNG, path=None)], target_instances=[dict(bbox=[1, 1, 5, 5])],
            datasource='treevgr', question_type='', id=None)
path = st.none()|st.text(max_size=8)
struct = st.fixed_dictionaries(dict(bytes=st.none()|st.text(max_size=8)|st.binary(max_size=8)|st.just(PNG), path=path))
image = path|st.binary(max_size=8)|struct
columns = {c:anything for c in ('problem', 'answer', 'target_instances', 'datasource', 'query', 'question_type')}|dict(images=image|st.lists(image, max_size=3))

@given(st.fixed_dictionaries({}, optional=columns))
def test_any_row_is_a_sample_or_a_message(tmp_path_factory, change):
    "A published row with columns of another kind"
    find = ImageFinder([tmp_path_factory.getbasetemp()])
    try: s = read_sample(GOOD|change, find, 'row 7')
    except InputError as e: assert str(e)
    else:
        assert s.question and s.answer and s.images and s.id
        if s.paired: assert s.boxes and all(0<=x1<x2<=50 and 0<=y1<y2<=40 for x1,y1,x2,y2 in s.boxes)
        else: assert s.boxes==()

def test_what_no_image_is():
    find = ImageFinder([])
    for wrong in ('a\0b', dict(bytes='text', path=None), dict(bytes='text', path='a.png'), dict(bytes=None, path=None)):
        with pytest.raises(InputError, match='expected a path'): read_sample(GOOD|dict(images=wrong), find, 'row 7')
    with pytest.raises(InputError, match='target_instances'): target_boxes('['*100_000)

number = st.integers(-3, 12)|st.floats(-3, 12)

@given(st.lists(st.lists(number, min_size=4, max_size=4), max_size=3), st.integers(1, 9), st.integers(1, 9))
def test_boxes_are_cut_to_the_image_or_refused(boxes, w, h):
    "Up to a pixel over the edge is rounding, more is a mistake; every form of the column says the same"
    forms = [[dict(bbox=b) for b in boxes], dict(bbox=boxes), str([dict(bbox=b) for b in boxes]).replace("'", '"')]
    assert [target_boxes(f) for f in forms]==[boxes]*3
    fits = [-1<=x1<x2<=w+1 and -1<=y1<y2<=h+1 and x1<w and y1<h and x2>0 and y2>0 for x1,y1,x2,y2 in boxes]
    if not all(fits):
        with pytest.raises(InputError, match='box '): check_boxes(boxes, (w, h))
    else:
        def cut(v, end): return min(max(v, 0), end)
        assert check_boxes(boxes, (w, h))==tuple((cut(x1, w), cut(y1, h), cut(x2, w), cut(y2, h)) for x1,y1,x2,y2 in boxes)

@given(st.sampled_from(['train', 'validation', 'test']), st.integers(0, 10**6), st.integers(0, 99), st.integers(1, 6), st.integers(0, 8))
def test_scenes_are_as_configured(split, index, seed, objects, clutter):
    "In their split, the same each time, nothing outside or upon another"
    cfg = NeedleConfig(size=160, objects=objects, tile_min=12, tile_max=24, clutter=clutter)
    tiles,specks,_ = needle_scene(split, index, cfg, seed)
    assert needle_scene(split, index, cfg, seed)[:2]==(tiles, specks)
    assert split_of(tiles)==split and (len(tiles), len(specks))==(objects, clutter) and len({t.colour for t in tiles})==objects
    placed = [t.box for t in tiles]+specks
    assert all(0<=x1<x2<=160 and 0<=y1<y2<=160 for x1,y1,x2,y2 in placed)
    assert all(a[2]<b[0] or b[2]<a[0] or a[3]<b[1] or b[3]<a[1] for i,a in enumerate(placed) for b in placed[:i])
    assert all(t.top!=t.colour and 12<=t.box[2]-t.box[0]<=24 for t in tiles)

def _archive(path, n=50, size=10_000):
    with tarfile.open(path, 'w:gz') as tar:
        for i in range(n):
            member = tarfile.TarInfo(f'images/{i}.bin')
            member.size = size
            tar.addfile(member, io.BytesIO(random.Random(i).randbytes(size)))
    return path

def unpack_into(home, archive):
    from huggingface_hub import constants
    constants.HF_HOME = home
    print(unpack(Path(archive)))

def test_processes_unpack_once(tmp_path):
    "Four processes that need the same archive at the same time get one directory, with everything in it"
    archive,home = _archive(tmp_path/'images.tar.gz'),tmp_path/'home'
    jobs = [Forked(tmp_path/f'said-{i}', unpack_into, str(home), str(archive)) for i in range(4)]
    texts = [job.finish().splitlines() for job in jobs]
    assert len({text[-1] for text in texts})==1
    assert sum('unpacking' in ' '.join(text) for text in texts)==1
    folder = Path(texts[0][-1])
    assert [p.name for p in (home/'ivgr').iterdir() if p.is_dir()]==[folder.name]
    assert len(list(folder.rglob('*.bin')))==50

def test_killed_while_unpacking(tmp_path, home, monkeypatch):
    "What a killed process leaves is not taken for the whole; a disk that is full is not taken for a broken archive"
    archive = _archive(tmp_path/'images.tar.gz')
    real = tarfile.TarFile.extractfile
    def killed(self, member, *a, **kw):
        if member.name.endswith('20.bin'): os._exit(9)
        return real(self, member, *a, **kw)
    def full(self, member, *a, **kw): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(tarfile.TarFile, 'extractfile', killed)
    child = multiprocessing.get_context('fork').Process(target=unpack, args=(archive,))
    child.start(); child.join(60)
    assert child.exitcode==9 and [p.suffix for p in home.iterdir() if p.is_dir()]==['.partial']
    monkeypatch.setattr(tarfile.TarFile, 'extractfile', full)
    with pytest.raises(OSError, match='No space left'): unpack(archive)
    monkeypatch.setattr(tarfile.TarFile, 'extractfile', real)
    assert len(list(unpack(archive).rglob('*.bin')))==50 and [p.suffix for p in home.iterdir() if p.is_dir()]==['']

def test_lack_of_room_is_an_error_before_unpacking(tmp_path, home, monkeypatch):
    archive = _archive(tmp_path/'images.tar.gz')
    monkeypatch.setattr('ivgr.data.files.shutil.disk_usage', lambda p: type('', (), dict(free=1000))())
    with pytest.raises(InputError, match='set HF_HOME to a larger disk'): unpack(archive)

@pytest.mark.parametrize('name', ['../out.bin', '/ivgr-out.bin', 'a/../../out.bin', 'link/out.bin'])
@pytest.mark.parametrize('kind', ['tar', 'zip'])
def test_nothing_lands_outside(tmp_path, home, kind, name):
    "Members that point outside, by their names or through a link, are refused or put inside"
    archive = tmp_path/f'images.{kind}'
    if kind=='tar':
        with tarfile.open(archive, 'w') as tar:
            if name.startswith('link'):
                link = tarfile.TarInfo('link')
                link.type,link.linkname = tarfile.SYMTYPE,str(tmp_path)
                tar.addfile(link)
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b'bad'))
    else:
        with zipfile.ZipFile(archive, 'w') as z: z.writestr(name, b'bad')
    try: made = [p for p in unpack(archive).rglob('*') if p.is_file()]
    except InputError as e: assert 'images' in str(e)
    else: assert [p.resolve().is_relative_to(home.resolve()) for p in made]==[True]
    everywhere = [p for p in tmp_path.rglob('*.bin') if not p.is_relative_to(home)]+[p for p in (Path('/ivgr-out.bin'),) if p.exists()]
    assert everywhere==[]

def _tar(path, members, mode='w:gz'):
    "An archive of `(name, kind, content or where a link leads)`"
    with tarfile.open(path, mode) as tar:
        for name,kind,content in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if kind==tarfile.REGTYPE: member.size = len(content)
            elif content: member.linkname = content
            tar.addfile(member, io.BytesIO(content) if kind==tarfile.REGTYPE else None)
    return path

def _escape(path, out):
    "What `filter='data'` of Python 3.10 and 3.11 lets through: links upon links, until `realpath` gives up (CVE-2025-4517)"
    component,members,here = 'd'*247,[],''
    for i in 'abcdefghijklmnop':
        members += [(f'{here}{component}', tarfile.DIRTYPE, None), (f'{here}{i}', tarfile.SYMTYPE, component)]
        here += f'{component}/'
    chain = '/'.join('abcdefghijklmnop')
    members += [(f'{chain}/{"l"*254}', tarfile.SYMTYPE, '../'*16), ('escape', tarfile.SYMTYPE, f'{chain}/{"l"*254}/{"../"*12}{str(out)[1:]}'),
                ('hard', tarfile.LNKTYPE, 'escape/secret'), ('hard', tarfile.REGTYPE, b'bad'), ('escape/out.bin', tarfile.REGTYPE, b'bad'),
                ('pipe', tarfile.FIFOTYPE, None), ('images/0.bin', tarfile.REGTYPE, b'good')]
    return _tar(path, members)

def test_links_are_left_out(tmp_path, home, capsys):
    "No link is ever made, so nothing can be written or read through one; they are counted and told"
    out = tmp_path/'victim'
    out.mkdir()
    (out/'secret').write_bytes(b'kept')
    folder = unpack(_escape(tmp_path/'images.tar.gz', out))
    assert sorted(p.name for p in out.iterdir())==['secret'] and (out/'secret').read_bytes()==b'kept'
    assert not any(p.is_symlink() or p.stat().st_nlink>1 for p in folder.rglob('*') if not p.is_dir())
    assert (folder/'images/0.bin').read_bytes()==b'good' and (folder/'escape').is_dir()
    assert '20 members that are links, devices or the like were left out' in capsys.readouterr().err
    with zipfile.ZipFile(tmp_path/'images.zip', 'w') as z:
        link = zipfile.ZipInfo('escape')
        link.external_attr = 0o120777<<16
        z.writestr(link, str(out))
        z.writestr('0.bin', b'good')
    assert [p.name for p in unpack(tmp_path/'images.zip').iterdir()]==['0.bin']

@pytest.mark.parametrize('kind', ['tar', 'gz', 'bz2', 'xz', 'zip'])
def test_bombs_are_refused(tmp_path, home, monkeypatch, kind):
    "Too much of anything: little that becomes much, more than the disk has, more members than any data set"
    def archive(name, *contents):
        path = tmp_path/f'{name}.{"zip" if kind=="zip" else "tar"}'
        if kind!='zip': return _tar(path, [(f'{i}', tarfile.REGTYPE, c) for i,c in enumerate(contents)], 'w' if kind=='tar' else f'w:{kind}')
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
            for i,c in enumerate(contents): z.writestr(f'{i}', c)
        return path
    noise = [random.Random(i).randbytes(300_000) for i in range(9)]
    if kind!='tar':
        for contents in ([bytes(30*2**20)], [*noise[:1], *[bytes(2**23)]*9]):
            with pytest.raises(InputError, match="can't be unpacked .* become.* look at what it holds"): unpack(archive('bomb', *contents))
    assert len(list(unpack(archive('zeros', bytes(2**20))).iterdir()))==1       # small enough to do no harm
    good = archive('good', *noise)
    with monkeypatch.context() as m:
        m.setattr('ivgr.data.files.MAX_MEMBERS', 8)
        with pytest.raises(InputError, match='more than 8 members'): unpack(good)
    with monkeypatch.context() as m:
        m.setattr('ivgr.data.files._check_space', lambda *a: None)
        m.setattr('ivgr.data.files.shutil.disk_usage', lambda p: type('', (), dict(free=9*300_000-1))())
        with pytest.raises(InputError, match='only 0.0 are free'): unpack(good)
    assert len(list(unpack(good).iterdir()))==9
    assert [p for p in home.iterdir() if p.suffix=='.partial']==[]

def test_headers_are_bounded(tmp_path, home):
    "A header of 1 GB would be read into memory at once; a size below nothing would be read for ever"
    member = tarfile.TarInfo('x')
    member.type,member.size = tarfile.GNUTYPE_LONGNAME,2**30
    (tmp_path/'long.tar').write_bytes(member.tobuf()+bytes(2**20))
    with pytest.raises(InputError, match='a header of 1073741824 bytes'): unpack(tmp_path/'long.tar')
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.SYMTYPE):
        member = tarfile.TarInfo('x')
        member.type,member.size = kind,-512
        (tmp_path/'negative.tar').write_bytes(member.tobuf(tarfile.GNU_FORMAT)+bytes(10240))
        with pytest.raises(InputError, match="can't be unpacked"): unpack(tmp_path/'negative.tar')
    _tar(tmp_path/'clash.tar', [('a', tarfile.REGTYPE, b'1'), ('a/b', tarfile.REGTYPE, b'2')], 'w')
    with pytest.raises(InputError, match="can't be unpacked .*a"): unpack(tmp_path/'clash.tar')

def test_a_new_archive_is_unpacked_anew(tmp_path, home):
    archive = _archive(tmp_path/'images.tar.gz', 2)
    first = unpack(archive)
    assert unpack(archive)==first
    _archive(archive, 3)
    assert unpack(archive)!=first and ImageFinder([tmp_path])('images/2.bin').startswith(str(home))

MEMORY = """
import sys
from ivgr.data import Samples
resident = lambda: int(open('/proc/self/status').read().split('RssAnon:')[1].split()[0])/1024
Samples(sys.argv[2])
before = resident()
samples = Samples(sys.argv[1])
for i in range(0, len(samples), 7): samples[i]
print(resident()-before)
"""

@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads /proc')
def test_images_in_the_table_stay_out_of_memory(tmp_path):
    "200 MB of images in the table; access to them makes no copy and holds one value"
    def write(path, n):
        row = dict(problem='<image>\nWhat?', query='What?', answer='this', target_instances=[], datasource='ours_x')
        schema = pa.schema(dict(problem=pa.string(), query=pa.string(), answer=pa.string(), target_instances=pa.list_(pa.struct(dict(bbox=pa.list_(pa.float64())))),
                                datasource=pa.string(), images=pa.list_(pa.struct(dict(bytes=pa.binary(), path=pa.string())))))
        with pq.ParquetWriter(path, schema) as out:
            for i in range(0, n, 100): out.write_table(pa.Table.from_pylist(
                [row|dict(images=[dict(bytes=random.Random(k).randbytes(100_000), path=f'{k}.jpg')]) for k in range(i, min(n, i+100))], schema))
        return str(path)
    files = [write(tmp_path/'large.parquet', 2000), write(tmp_path/'small.parquet', 1)]
    env = os.environ|dict(HF_HOME=str(tmp_path/'home'), HF_HUB_OFFLINE='1')
    out = subprocess.run([sys.executable, '-c', MEMORY, *files], text=True, timeout=250, capture_output=True, env=env)
    assert out.returncode==0, out.stderr[-2000:]
    assert not list((tmp_path/'home').rglob('*.arrow'))  # no copy is made
    assert float(out.stdout)<50, f'{out.stdout} MB'  # none measured; a row group of 10 MB, decoded by Arrow, takes 90

def test_images_stay_closed(tmp_path, monkeypatch):
    "Opening a data set, and reading rows of the unpaired stream, opens no image"
    rows = [dict(problem='<image>\nWhat?', query='What?', answer='this', images=[f'{i}.png'], target_instances=[dict(bbox=[1., 1., 5., 5.])],
                 datasource=source) for i,source in enumerate(['ours_x', 'treevgr'])]
    for i in range(2): Image.new('RGB', (9, 9)).save(tmp_path/f'{i}.png')
    pq.write_table(pa.Table.from_pylist(rows), tmp_path/'train.parquet')
    opened,real = [],Image.open
    monkeypatch.setattr(Image, 'open', lambda f: opened.append(Path(f).name) or real(f))
    samples = Samples(tmp_path)
    samples[0]
    assert opened==[] and samples[1].paired and opened==['1.png']

def test_ids_tell_questions_apart(tmp_path):
    "The same question may come twice under one id, another one may not"
    def samples(*problems, **change):
        path = tmp_path/f'{len(set(problems))}{len(change)}.parquet'
        rows = [GOOD|dict(problem=f'<image>\n{p}', query=p, id='scene-0') for p in problems]
        pq.write_table(pa.Table.from_pylist([*rows[:-1], rows[-1]|change]), path)
        return Samples(path)
    assert len(samples('What?', 'What?'))==2
    with pytest.raises(InputError, match="row 1: another question, or another image, has the id 'scene-0'"): samples('What?', 'Where?')
    with pytest.raises(InputError, match='row 1: another question, or another image'): samples('What?', 'What?', images=[dict(bytes=PNG+b'0', path=None)])

def test_a_stopped_rewrite_leaves_no_old_table(tmp_path, monkeypatch):
    "Old answers never stand beside new images"
    write_needle(tmp_path, 'train', 3, progress=False)
    def stop(self, *args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(Image.Image, 'save', stop)
    with pytest.raises(KeyboardInterrupt): write_needle(tmp_path, 'train', 3, NeedleConfig(objects=3), progress=False)
    with pytest.raises(InputError, match='no data at'): Samples(tmp_path)

@given(st.integers(24, 600), st.integers(0, 2**31))
def test_small_tiles_have_boxes(size, seed):
    "However small a tile, the box that is written has an area and lies in the image"
    rng = random.Random(seed)
    w,h = rng.randint(1, 12),rng.randint(1, 12)
    x,y = rng.randint(0, size-w),rng.randint(0, size-h)
    boxes,invalid = read_boxes(box_text((x, y, x+w, y+h), size), Frame.unit1000())
    assert invalid==0 and boxes

def test_odd_conversations_are_used_or_listed(tmp_path):
    "Placeholders anywhere, a box a pixel outside, a byte-order mark; what can't be used is listed, not an end"
    Image.new('RGB', (224, 168)).save(tmp_path/'0.png')
    def row(human, reply, images=('0.png',)):
        return dict(images=list(images), conversations=[{'from':'human', 'value':human}, {'from':'gpt', 'value':reply}])
    good = '<think>Red.</think><answer>red</answer>'
    boxed = '<think>The tile <box>[ 20.5, -1, 225, 169 ]</box>.</think><answer>red</answer>'
    rows = [row('What colour?\n<image>\nUse <think></think>.', good), row('Is <image> red?', good), row('<image>\nWhich?', boxed),
            row('What is 2+2?', good, ()), row('<image>\nA?', good.replace('red', 'red <box>[1,2,3,4]</box>')),
            row('<image>\nA?', boxed.replace('169', '170')), row('<image>\nA?', good, ('nowhere.png',))]
    (tmp_path/'set.json').write_text('\ufeff'+json.dumps(rows), encoding='utf-8')
    talks = Conversations(tmp_path/'set.json')
    report = report_on(talks, progress=False)
    assert list(report.skipped)==[3, 4, 5, 6] and 'holds a box' in report.skipped[4]
    kept = usable(talks, progress=False)
    assert [s.question for s in kept]==['What colour?', 'Is the image red?', 'Which?'] and len(kept.by_image())==1
    assert kept[2].boxes==((20.5, 0, 224, 168),) and '<box>[20.5,0,224,168]</box>' in kept.demonstration(2).reply
    with pytest.raises(InputError, match="set.json', row 3: there is no image"): usable(talks, strict=True, progress=False)
